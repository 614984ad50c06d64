"""Names of the graph's own topics and services; those of arm and cameras are in the contract."""

TELEOP_TWIST = "/teleop/twist"
TELEOP_GRIPPER = "/teleop/gripper"
TELEOP_DEADMAN = "/teleop/deadman"
ACTION_CHUNK = "/policy/action_chunk"
SHADOW_CHUNK = "/policy/shadow_chunk"       # what a policy in shadow mode would have done; nothing listens to it
PLANNED_TARGET = "/planned/target_pose"     # of a planned move, for the gate alone
PLANNED_GRIPPER = "/planned/gripper"
GATE_STATUS = "/gate/status"
DIAGNOSTICS = "/diagnostics"
EVALUATION_OVERLAY = "/evaluation/overlay"     # the wanted initial state over the live camera image, for the operator
SCENE = "/sim/scene"          # privileged state, for the scripted operator alone

GATE_STOP = "/gate/stop"
GATE_REARM = "/gate/rearm"
GATE_ENABLE_POLICY = "/gate/enable_policy"
GATE_ALLOW_PLANNED = "/gate/allow_planned"
START_GO = "/start/go_to_start"
START_CANCEL = "/start/cancel"
START_STATUS = "/start/status"
RECORDER_START = "/recorder/start"
RECORDER_SUCCESS = "/recorder/success"
RECORDER_FAIL = "/recorder/fail"
RECORDER_DISCARD = "/recorder/discard"
OPERATOR_START = "/operator/start"
OPERATOR_STOP = "/operator/stop"
SIM_RESET = "/sim/reset"
SIM_SUCCESS = "/sim/success"

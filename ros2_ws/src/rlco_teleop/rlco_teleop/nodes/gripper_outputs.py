"""Where the gate's gripper opening goes: a forward command controller, a GripperCommand action, or nowhere."""

from collections.abc import Callable, Mapping

from std_msgs.msg import Float64MultiArray

from rlco_common.contract import RobotSpec
from rlco_common.errors import ConfigError
from rlco_common.ros import declare
from rlco_teleop.arm_adapter import GripperGoals, finger_positions
from rlco_teleop.ros import Endpoints

KINDS = ("none", "forward", "action")


def declare_gripper(node) -> dict:
    """The gripper's parameters."""
    return {
        "kind": declare(node, "gripper", "none", "where openings go: none, forward (a forward command controller), or action "
                        "(control_msgs/GripperCommand)", choices=KINDS, read_only=True),
        "topic": declare(node, "gripper_topic", "/gripper_controller/commands", "forward: the controller's topic",
                         read_only=True),
        "fingers": declare(node, "gripper_fingers", 2, "forward: joints of the controller, each of which gets the contract's "
                           "position for the opening", low=1, high=4, read_only=True),
        "action": declare(node, "gripper_action", "/franka_gripper/gripper_action", "action: its name", read_only=True),
        "max_effort": declare(node, "gripper_max_effort", 20.0, "action: force of the goal, newton", low=0.0, high=200.0,
                              read_only=True)}


def require_gripper(settings: Mapping) -> None:
    """Raise ConfigError where control_msgs is needed and not installed."""
    if settings["kind"] != "action":
        return
    try:
        from control_msgs.action import GripperCommand  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"gripper:=action needs control_msgs: {error}. Install it "
                          "(apt install ros-$ROS_DISTRO-control-msgs), or use gripper:=forward") from error


def gripper_output(node, endpoints: Endpoints, robot: RobotSpec, settings: Mapping) -> Callable[[float], None]:
    """A function that sends an opening in [0, 1]."""
    if settings["kind"] == "none":
        return lambda opening: None
    if settings["kind"] == "forward":
        publisher = endpoints.publisher(Float64MultiArray, settings["topic"])
        return lambda opening: publisher.publish(Float64MultiArray(
            data=finger_positions(robot, opening, settings["fingers"])))
    return _action_output(node, endpoints, robot, settings)


def _action_output(node, endpoints, robot, settings):
    from control_msgs.action import GripperCommand
    from rclpy.action import ActionClient

    client = endpoints.keep(lambda made: made.destroy(), ActionClient(node, GripperCommand, settings["action"]))
    goals = GripperGoals()

    def send(opening: float) -> None:
        if not client.server_is_ready():
            node.get_logger().error(f"nobody serves {settings['action']}; the gripper does not move", throttle_duration_sec=5.0)
            return
        if (wanted := goals.next(opening)) is None:
            return
        goal = GripperCommand.Goal()
        goal.command.position, = finger_positions(robot, wanted, 1)
        goal.command.max_effort = settings["max_effort"]
        client.send_goal_async(goal).add_done_callback(lambda future: _report_refusal(node, goals, future))

    return send


def _report_refusal(node, goals: GripperGoals, future) -> None:
    if not future.result().accepted:
        goals.forget()      # the next command tries again
        node.get_logger().error("the gripper refused a goal", throttle_duration_sec=5.0)

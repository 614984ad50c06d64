"""The planner of ways to the start on a full ROS installation: MoveIt, through moveit_py.

MoveIt is configured by the parameters of the node's process, as moveit_configs_utils writes them; see docs/real_robot.md.
"""

from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import Pose as PoseMessage
from geometry_msgs.msg import PoseStamped

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_common.pose import Pose, quaternion_conjugate, quaternion_multiply, rotation_matrix
from rlco_teleop.start_way import STANDING, Block, StartError

_IK_TIMEOUT_S = 0.1


class MoveItPlanner:
    """A start_way.Planner. group: MoveIt's planning group of the arm. Blocks are added to MoveIt's planning scene.

    Raises ConfigError where moveit_py is not installed.
    """

    def __init__(self, contract: Contract, group: str, blocks: Sequence[Block]):
        try:
            from moveit.core.robot_state import RobotState
            from moveit.planning import MoveItPy
            from moveit_msgs.msg import CollisionObject
        except ImportError as error:
            raise ConfigError(f"planner:=moveit needs moveit_py: {error}. Install it "
                              "(apt install ros-$ROS_DISTRO-moveit-py), or use planner:=own") from error
        self._robot, self._group = contract.robot, group
        self._moveit = MoveItPy(node_name="start_moveit")
        self._arm = self._moveit.get_planning_component(group)
        self._monitor = self._moveit.get_planning_scene_monitor()
        self._new_state = lambda: RobotState(self._moveit.get_robot_model())
        self._standing = [block for block in blocks if block.name == STANDING]
        self._put([block for block in blocks if block.name != STANDING], CollisionObject.ADD)

    def joints_at(self, pose: Pose, near: np.ndarray) -> np.ndarray:
        state = self._state(near)
        message = _pose_msg(self._in_model(state, pose))
        if not state.set_from_ik(self._group, message, self._robot.ee_frame, _IK_TIMEOUT_S):
            raise StartError(f"no joint positions found with the tool at {pose.position.round(3).tolist()} m")
        state.update()
        return np.array([state.joint_positions[name] for name in self._robot.arm_joints])

    def touching(self, joints: np.ndarray) -> frozenset[str]:
        """Without the block of what stands on the table: inside it, MoveIt would say no more than that something touches."""
        with self._monitor.read_only() as scene:
            colliding = scene.is_state_colliding(robot_state=self._state(joints), joint_model_group_name=self._group)
        return frozenset(["something would touch, as MoveIt sees it"]) if colliding else frozenset()

    def plan(self, joints: np.ndarray, goal: Pose) -> list[Pose]:
        from moveit_msgs.msg import CollisionObject

        self._arm.set_start_state(robot_state=self._state(joints))
        message = PoseStamped(pose=_pose_msg(goal))
        message.header.frame_id = self._robot.base_frame
        self._arm.set_goal_state(pose_stamped_msg=message, pose_link=self._robot.ee_frame)
        self._put(self._standing, CollisionObject.ADD)
        try:
            result = self._arm.plan()
        finally:
            self._put(self._standing, CollisionObject.REMOVE)
        if not result:
            raise StartError("MoveIt found no way to the start; its log says why")
        trajectory = result.trajectory.get_robot_trajectory_msg().joint_trajectory
        order = [trajectory.joint_names.index(name) for name in self._robot.arm_joints]
        return [self._tool(np.array(point.positions)[order]) for point in trajectory.points]

    def _state(self, joints: np.ndarray):
        state = self._new_state()
        state.set_to_default_values()
        state.joint_positions = dict(zip(self._robot.arm_joints, map(float, joints), strict=True))
        state.update()
        return state

    def _tool(self, joints: np.ndarray) -> Pose:
        """The tool in the contract's base frame."""
        state = self._state(joints)
        base, tool = (_pose_from(state.get_pose(link)) for link in (self._robot.base_frame, self._robot.ee_frame))
        turned = quaternion_conjugate(base.quaternion)
        return Pose(rotation_matrix(turned) @ (tool.position - base.position), quaternion_multiply(turned, tool.quaternion))

    def _in_model(self, state, pose: Pose) -> Pose:
        """A pose in the base frame, in the model's own frame, which the inverse kinematics takes."""
        base = _pose_from(state.get_pose(self._robot.base_frame))
        return Pose(base.position + rotation_matrix(base.quaternion) @ pose.position,
                    quaternion_multiply(base.quaternion, pose.quaternion))

    def _put(self, blocks: Sequence[Block], operation) -> None:
        """Add blocks to the planning scene, or remove them (operations of moveit_msgs/CollisionObject)."""
        from moveit_msgs.msg import CollisionObject
        from shape_msgs.msg import SolidPrimitive

        with self._monitor.read_write() as scene:
            for block in blocks:
                thing = CollisionObject(id=block.name, operation=operation)
                thing.header.frame_id = self._robot.base_frame
                thing.primitives.append(SolidPrimitive(type=SolidPrimitive.BOX,
                                                       dimensions=[2.0 * half for half in block.half_size_m]))
                thing.primitive_poses.append(_pose_msg(block.pose))
                scene.apply_collision_object(thing)
            scene.current_state.update()


def _pose_msg(pose: Pose) -> PoseMessage:
    message = PoseMessage()
    message.position.x, message.position.y, message.position.z = map(float, pose.position)
    orientation = message.orientation
    orientation.x, orientation.y, orientation.z, orientation.w = map(float, pose.quaternion)
    return message


def _pose_from(message: PoseMessage) -> Pose:
    position, orientation = message.position, message.orientation
    return Pose([position.x, position.y, position.z], [orientation.x, orientation.y, orientation.z, orientation.w])

"""A node that drives and watches a graph from a script or a test: services, parameters, messages, all with deadlines.

It has its own rclpy context, so several clients on several domains can live in one process. Waiting spins the client's
single-threaded executor and returns as soon as the awaited thing happened.
"""

import time
from collections.abc import Callable

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from std_srvs.srv import SetBool, Trigger

from rlco_common.errors import RlcoError
from rlco_common.ros import STATE_QOS, prepare_environment

_WATCH_PERIOD_S = 0.2


class Timeout(RlcoError):
    """Something that was waited for did not happen in time."""


class Inbox:
    """Every message of one subscription, oldest first, with its monotonic arrival time in nanoseconds."""

    def __init__(self):
        self.messages: list = []
        self.arrivals_ns: list[int] = []

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def last(self):
        return self.messages[-1] if self.messages else None

    def clear(self) -> None:
        self.messages.clear()
        self.arrivals_ns.clear()

    def find(self, predicate: Callable):
        """The newest message that satisfies the predicate, or None."""
        return next((message for message in reversed(self.messages) if predicate(message)), None)

    def _receive(self, message) -> None:
        self.arrivals_ns.append(time.monotonic_ns())
        self.messages.append(message)


class RosClient:
    """Client of one graph. `watch` is called while waiting and may raise (Processes.check: a died process)."""

    def __init__(self, name: str = "rlco_client", domain_id: int | None = None,
                 watch: Callable[[], None] | None = None):
        prepare_environment()
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain_id)
        self.node = rclpy.create_node(name, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._watch = watch
        self._clients: dict[str, object] = {}

    def __enter__(self) -> "RosClient":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()

    def wait_until(self, condition: Callable[[], object], timeout_s: float, what: str):
        """Spin until `condition()` is true and return its value; raises Timeout saying `what` was awaited."""
        deadline = time.monotonic() + timeout_s
        watched = 0.0
        while True:
            value = condition()
            if value:
                return value
            now = time.monotonic()
            if self._watch is not None and now - watched > _WATCH_PERIOD_S:
                self._watch()
                watched = now
            if now >= deadline:
                raise Timeout(f"waited {timeout_s:g} s for {what}")
            self._executor.spin_once(timeout_sec=min(_WATCH_PERIOD_S, deadline - now))

    def spin_for(self, duration_s: float) -> None:
        """Receive messages for a given time; only for observing that something does *not* happen."""
        deadline = time.monotonic() + duration_s
        while (left := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def subscribe(self, message_type, topic: str, qos: QoSProfile = STATE_QOS, matched_s: float = 0.0) -> Inbox:
        """Collect a topic's messages. With `matched_s`, wait that long at most for a publisher to be connected."""
        inbox = Inbox()
        subscription = self.node.create_subscription(message_type, topic, inbox._receive, qos)
        if matched_s:
            self.wait_until(lambda: subscription.get_publisher_count() > 0, matched_s, f"a publisher on {topic}")
        return inbox

    def publisher(self, message_type, topic: str, qos: QoSProfile = STATE_QOS, matched_s: float = 0.0):
        """Create a publisher. With `matched_s`, wait that long at most for a subscriber to be connected."""
        publisher = self.node.create_publisher(message_type, topic, qos)
        if matched_s:
            self.wait_until(lambda: publisher.get_subscription_count() > 0, matched_s, f"a subscriber on {topic}")
        return publisher

    def wait_for_message(self, message_type, topic: str, predicate: Callable = lambda message: True,
                         qos: QoSProfile = STATE_QOS, timeout_s: float = 10.0):
        """The first message from now on (or latched) that satisfies the predicate.

        To await the answer to something you send, `subscribe` first and then `wait_until(lambda: inbox.find(...))`.
        """
        inbox = Inbox()
        subscription = self.node.create_subscription(message_type, topic, inbox._receive, qos)
        try:
            return self.wait_until(lambda: inbox.find(predicate), timeout_s, f"a fitting message on {topic}")
        finally:
            self.node.destroy_subscription(subscription)

    def call(self, service_type, service: str, request=None, timeout_s: float = 10.0):
        """Call a service and return its response; one deadline covers its appearance and its answer."""
        deadline = time.monotonic() + timeout_s
        if service not in self._clients:
            self._clients[service] = self.node.create_client(service_type, service)
        client = self._clients[service]
        self.wait_until(client.service_is_ready, timeout_s, f"service {service}")
        future = client.call_async(service_type.Request() if request is None else request)
        try:
            self.wait_until(future.done, max(0.0, deadline - time.monotonic()), f"the answer of {service}")
        except RlcoError:
            client.remove_pending_request(future)
            raise
        return future.result()

    def trigger(self, service: str, timeout_s: float = 10.0) -> tuple[bool, str]:
        """Call a std_srvs/Trigger service: (success, message)."""
        response = self.call(Trigger, service, timeout_s=timeout_s)
        return response.success, response.message

    def must_trigger(self, service: str, timeout_s: float = 10.0) -> str:
        """Call a std_srvs/Trigger service that has to succeed; returns its message, raises RlcoError with it if not."""
        success, message = self.trigger(service, timeout_s)
        if not success:
            raise RlcoError(f"{service} refused: {message}")
        return message

    def trigger_when_ready(self, service: str, timeout_s: float = 10.0) -> str:
        """Call a std_srvs/Trigger service again until it accepts; its message. Raises RlcoError with its last reason."""
        deadline = time.monotonic() + timeout_s
        while True:
            success, message = self.trigger(service)
            if success:
                return message
            if time.monotonic() > deadline:
                raise RlcoError(f"{service} still refuses after {timeout_s:g} s: {message}")
            self.spin_for(0.05)

    def set_bool(self, service: str, value: bool, timeout_s: float = 10.0) -> tuple[bool, str]:
        """Call a std_srvs/SetBool service: (success, message)."""
        response = self.call(SetBool, service, SetBool.Request(data=value), timeout_s)
        return response.success, response.message

    def set_parameters(self, node_name: str, timeout_s: float = 10.0, **values) -> None:
        """Set parameters of another node, all or none; raises RlcoError with the node's reason."""
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        result = self.call(SetParametersAtomically, f"{node_name}/set_parameters_atomically",
                           SetParametersAtomically.Request(parameters=parameters), timeout_s).result
        if not result.successful:
            raise RlcoError(f"{node_name} refused parameters {values}: {result.reason}")

    def wait_active(self, node_name: str, timeout_s: float = 20.0) -> None:
        """Wait until a lifecycle node is active."""
        deadline = time.monotonic() + timeout_s
        label = "not there"
        while label != "active":
            if time.monotonic() > deadline:
                raise Timeout(f"waited {timeout_s:g} s for {node_name} to become active; it is {label}")
            try:    # in short tries: a request to a node that was just killed is never answered
                label = self.call(GetState, f"{node_name}/get_state", timeout_s=1.0).current_state.label
            except Timeout:
                continue
            self.spin_for(0.02)

    def change_state(self, node_name: str, transition: int = Transition.TRANSITION_ACTIVATE,
                     timeout_s: float = 10.0) -> bool:
        """Request a lifecycle transition (a lifecycle_msgs/Transition constant); False when the node refused."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call(ChangeState, f"{node_name}/change_state", request, timeout_s).success

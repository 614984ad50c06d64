"""The services of simulation_interfaces (2.x) on top of the bridge's own, where that package is installed.

One step is one control tick. A reset starts an episode as the node's parameters say; time is never set back, because
no node of the graph could tell the episodes apart. STOPPED is a paused simulation at the start of an episode.
"""

from types import SimpleNamespace

from rlco_common.errors import RlcoError

MOST_STEPS = 500        # in one call, which blocks the node while it lasts


class StandardServices:
    """Offers the services on `bridge` (nodes/bridge_node.py). `missing` says why there are none, when there are none."""

    def __init__(self, bridge):
        self.missing = ""
        try:
            self._types = _load_types()
        except ImportError as error:
            self.missing = f"no simulation_interfaces services: {error}; the std_srvs services do the same"
            return
        self._bridge = bridge
        for name, callback in (("get_simulator_features", self._features), ("get_simulation_state", self._get_state),
                               ("set_simulation_state", self._set_state), ("reset_simulation", self._reset),
                               ("step_simulation", self._step)):
            type_name = "".join(part.capitalize() for part in name.split("_"))
            bridge.offer(getattr(self._types.srv, type_name), name, callback)

    def _features(self, request, response):
        known = self._types.msg.SimulatorFeatures
        response.features.features = [
            known.SIMULATION_RESET, known.SIMULATION_RESET_STATE, known.SIMULATION_STATE_GETTING,
            known.SIMULATION_STATE_SETTING, known.SIMULATION_STATE_PAUSE, known.STEP_SIMULATION_SINGLE,
            known.STEP_SIMULATION_MULTIPLE]
        response.features.custom_info = ("A reset starts the episode that the parameters task, domain, seed and variation "
                                         "of this node choose; time goes on. A step is one control tick.")
        return response

    def _get_state(self, request, response):
        response.state.state = self._state()
        return self._done(response)

    def _set_state(self, request, response):
        states, wanted = self._types.msg.SimulationState, request.state.state
        actions = {states.STATE_PLAYING: lambda: self._bridge.pause(False),
                   states.STATE_PAUSED: lambda: self._bridge.pause(True),
                   states.STATE_STOPPED: self._bridge.stop}
        if wanted not in actions:
            return self._refused(response, "RESULT_FEATURE_UNSUPPORTED", f"no simulation state {wanted}; there are stopped, "
                                 "playing and paused")
        if wanted == self._state():
            response.result.result = type(response).ALREADY_IN_TARGET_STATE
            response.result.error_message = "already in that state"
            return response
        return self._try(response, actions[wanted])

    def _reset(self, request, response):
        scopes = self._types.srv.ResetSimulation.Request
        if request.scope not in (scopes.SCOPE_DEFAULT, scopes.SCOPE_ALL) and not request.scope & scopes.SCOPE_STATE:
            return self._refused(response, "RESULT_FEATURE_UNSUPPORTED", f"scope {request.scope} without the state: time is "
                                 "never set back, and nothing is spawned")
        return self._try(response, self._bridge.new_episode)

    def _step(self, request, response):
        if not self._bridge.paused:
            return self._refused(response, "RESULT_OPERATION_FAILED", "the simulation is not paused")
        if not 1 <= request.steps <= MOST_STEPS:
            return self._refused(response, "RESULT_OPERATION_FAILED", f"{request.steps} steps; 1 to {MOST_STEPS} at a time")
        return self._try(response, lambda: [self._bridge.step() for _ in range(request.steps)])

    def _state(self):
        states = self._types.msg.SimulationState
        if not self._bridge.live:
            return states.STATE_NO_WORLD
        if self._bridge.stopped:
            return states.STATE_STOPPED
        return states.STATE_PAUSED if self._bridge.paused else states.STATE_PLAYING

    def _try(self, response, action):
        try:
            action()
        except RlcoError as error:
            return self._refused(response, "RESULT_OPERATION_FAILED", str(error))
        return self._done(response)

    def _done(self, response):
        response.result.result = self._types.msg.Result.RESULT_OK
        return response

    def _refused(self, response, code, reason):
        response.result.result = getattr(self._types.msg.Result, code)
        response.result.error_message = reason
        return response


def _load_types():
    from simulation_interfaces import msg, srv

    return SimpleNamespace(msg=msg, srv=srv)

"""Launch files: what the runner reads it means as launch_ros does, the rest it refuses; the shipped files fit their nodes."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import gone
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.parameter import parameter_value_to_python
from sensor_msgs.msg import Image

from rlco_common.errors import ConfigError
from rlco_common.launch_file import arguments_text, read_launch_file
from rlco_common.launch_runner import node_command
from rlco_common.launch_text import LaunchProblem, Scope, expand, parse, typed_value, words
from rlco_common.launch_xml import evaluate_launch_file, parse_assignments
from rlco_common.processes import Processes
from rlco_common.resources import package_share
from rlco_common.ros import CAMERA_QOS
from rlco_common.ros_client import RosClient
from rlco_trainer.cli import main
from rlco_trainer.commands.up import shipped

COMMAND = [sys.executable, "-m", "rlco_trainer.cli", "up"]
REQUIRED = {"deploy": {"checkpoint": "nowhere"}, "train": {"config": "nothing"},
            "evaluate": {"protocol": "nothing"}}        # arguments without a default
USUAL = {"namespace", "use_sim_time", "params_file", "log_level", "autostart"}


@pytest.fixture
def launch(tmp_path):
    """launch(body, **arguments): the nodes of a launch file with that body."""
    def evaluate(body: str, **arguments: str):
        path = tmp_path / "x.launch.xml"
        path.write_text(f"<launch>\n{body}\n</launch>\n")
        return evaluate_launch_file(path, arguments)

    return evaluate


# -- text


@pytest.mark.parametrize(("text", "expected"), [
    ("a $(var x) b", "a 1 b"), ("$(var y 7)", "7"), ("$(env HERE)/$(env THERE else)", "h/else"),
    ("$(var y $(env HERE))", "h"), ("$(env THERE 'two words')", "two words"), (r"\$(var x)", "$(var x)"), ("$5", "$5"),
    ("$(var y '')", ""), ("$(dirname)/f", "/folder/f"), ("", ""),
])
def test_substitutions_yield_text(text, expected):
    assert expand(text, Scope({"x": "1"}, {"HERE": "h"}, Path("/folder"))) == expected


@pytest.mark.parametrize(("text", "problem"), [
    ("$(var y)", "no <arg> or <let>"), ("$(env THERE)", "not set"), ("$(eval 1 + 1)", r"\$\(eval\) is not known"),
    ("$(var x", "not closed"), ("$(var x )", "argument is empty"),
    ("$(var)", r"takes 1 or 2 argument\(s\), not 0"), ("$(dirname x)", "takes 0"),
    ("$(find-pkg-share no_such_package)", "not installed"), ("$( var x)", "starts with its name"),
])
def test_a_wrong_substitution_is_named(text, problem):
    with pytest.raises(LaunchProblem, match=problem):
        expand(text, Scope({"x": "1"}, {}, Path("/")))


def test_a_command_line_is_never_split_inside_a_substitution():
    scope = Scope({"x": "a b"}, {}, Path("/"))
    assert words("--one $(var x) 'c d' e=$(var x)", scope) == ["--one", "a b", "c d", "e=a b"]
    assert parse("$(var x)") != parse("x")


@pytest.mark.parametrize(("text", "kind", "expected"), [
    ("3", "yaml", 3), ("3", "str", "3"), ("3", "float", 3.0), ("'3'", "yaml", "3"), ("010", "yaml", 8), ("1e3", "yaml", "1e3"),
    ("no", "yaml", False), ("1", "bool", True), ("", "yaml", ""), ("", "str", ""), ("[1, 2]", "yaml", [1, 2]),
    ("[a, $(var n)]", "list_of_str", ["a", "7"]), ("[1.5, 2.5]", "list_of_float", [1.5, 2.5]), ("$(var n)", "yaml", 7),
    ("$(var n)", "float", 7.0), ("$(var n)", "str", "7"), ("$(var flag)", "bool", True),
    ("objects=unseen,start=$(var n)", "str", "objects=unseen,start=7"), ("1.5", "yaml", 1.5),
])
def test_values_are_typed_as_launch_ros_types_them(text, kind, expected):
    value = typed_value(text, kind, Scope({"n": "7", "flag": "true"}, {}, Path("/")))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(("text", "kind"), [
    ("1.5", "int"), ("three", "float"), ("maybe", "bool"), ("{a: 1}", "yaml"), ("null", "yaml"), ("[1, a]", "yaml"),
    ("[a, $(var n)]", "yaml"), ("[1, 2]", "list_of_float"), ("$(var n)", "list_of_int"),
    ("$(var list)", "list_of_int"), ("[]", "list_of_int"), ("[1]", "int"), ("1", "number"),
])
def test_a_value_of_another_type_is_refused(text, kind):
    with pytest.raises(LaunchProblem):
        typed_value(text, kind, Scope({"n": "7", "list": "[1, 2]"}, {}, Path("/")))


# -- elements


def test_a_node_has_what_the_file_says(launch, tmp_path):
    parameters = tmp_path / "p.yaml"
    parameters.write_text("/**:\n  ros__parameters: {}\n")
    node, = launch("""
      <arg name="rate" default="4"/>
      <let name="who" value="robot_$(var rate)"/>
      <set_env name="FIRST" value="1"/>
      <node pkg="p" exec="e" name="$(var who)" namespace="arm" args="--x 'a b'" ros_args="--log-level debug" respawn="true"
            respawn_delay="0.5" sigterm_timeout="60" sigkill_timeout="2.5" on_exit="shutdown" output="screen">
        <param name="rate_hz" value="$(var rate)" type="float"/>
        <param name="label" value="$(var rate)" type="str"/>
        <param from="$(dirname)/p.yaml"/>
        <param name="last" value="true"/>
        <remap from="in" to="/out/$(var rate)"/>
        <env name="SECOND" value="$(env FIRST)2"/>
      </node>""")
    assert (node.package, node.executable, node.name, node.namespace, node.label) == ("p", "e", "robot_4", "/arm", "e")
    assert node.parameters == ({"rate_hz": 4.0, "label": "4"}, parameters, {"last": True})
    assert type(node.parameters[0]["rate_hz"]) is float
    assert (node.remappings, node.arguments, node.ros_arguments) == (
        (("in", "/out/4"),), ("--x", "a b"), ("--log-level", "debug"))
    assert node.environment == {"FIRST": "1", "SECOND": "12"}
    assert (node.respawn, node.respawn_delay_s, node.ends_run) == (True, 0.5, True)
    assert (node.sigterm_timeout_s, node.sigkill_timeout_s) == (60.0, 2.5)


def test_the_command_line_is_launch_ros_own(launch, tmp_path):
    node, = launch("""<node pkg="rlco_teleop" exec="gate_node" name="g" namespace="a" args="x" ros_args="--log-level warn">
        <param name="rate_hz" value="10.0"/><remap from="in" to="out"/></node>""")
    command = node_command(node, tmp_path / "logs", "gate")
    values = str(tmp_path / "logs" / "gate_0.yaml")
    assert command[1:] == ["x", "--ros-args", "--log-level", "warn", "--ros-args", "-r", "__node:=g", "-r", "__ns:=/a",
                           "--params-file", values, "-r", "in:=out"]
    assert Path(values).read_text() == "/a/g:\n  ros__parameters:\n    rate_hz: 10.0\n"


@pytest.mark.parametrize(("given", "expected"), [({}, "b"), ({"first": "false"}, ""), ({"second": "1"}, "abc"),
                                                 ({"second": "TRUE", "first": "0"}, "c")])
def test_conditions_choose(launch, given, expected):
    nodes = launch("""
      <arg name="first" default="true"/> <arg name="second" default="False"/>
      <group if="$(var first)">
        <node pkg="p" exec="a" if="$(var second)"/>
        <node pkg="p" exec="b"/>
      </group>
      <node pkg="p" exec="c" unless="$(env NOT_SET_ANYWHERE true)"/>
      <node pkg="p" exec="c" if="$(var second)"/>""", **given)
    assert "".join(node.executable for node in nodes) == expected


def test_a_group_is_a_scope_unless_it_says_otherwise(launch):
    nodes = launch("""
      <let name="x" value="out"/>
      <group><let name="x" value="in"/><set_env name="E" value="1"/><push_ros_namespace namespace="a"/>
        <group><push-ros-namespace namespace="b"/><node pkg="p" exec="$(var x)" namespace="c"/></group>
        <node pkg="p" exec="$(var x)"/><node pkg="p" exec="$(var x)" namespace="/top/"/></group>
      <node pkg="p" exec="$(var x)"/>
      <group scoped="false"><let name="x" value="leaks"/></group>
      <node pkg="p" exec="$(var x)" namespace=""/>""")
    assert [(node.executable, node.namespace) for node in nodes] == [
        ("in", "/a/b/c"), ("in", "/a"), ("in", "/top"), ("out", None), ("leaks", "/")]
    assert [bool(node.environment) for node in nodes] == [True, True, True, False, False]


def test_included_files_share_configurations(launch, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inner.launch.xml").write_text("""<launch>
      <arg name="who" description="whom to start"/> <arg name="x" default="inner"/>
      <node pkg="$(var who)" exec="$(var x)" name="$(var extra)"><param name="d" value="$(dirname)" type="str"/></node>
    </launch>""")
    body = """<arg name="extra" default="e"/>
      <include file="$(dirname)/sub/inner.launch.xml"><arg name="who" value="me"/></include>
      <node pkg="$(var who)" exec="$(var x)"><param name="d" value="$(dirname)" type="str"/></node>"""
    inner, outer = launch(body)
    assert (inner.package, inner.executable, inner.name) == ("me", "inner", "e")
    assert (outer.package, outer.executable) == ("me", "inner")
    assert (inner.parameters, outer.parameters) == (({"d": str(tmp_path / "sub")},), ({"d": str(tmp_path)},))
    assert launch(body, x="given")[0].executable == "given"
    names = [argument.name for argument in read_launch_file(tmp_path / "x.launch.xml").arguments]
    assert names == ["extra", "who", "x"]
    with pytest.raises(ConfigError, match=r"inner\.launch\.xml needs 1 more .*\n  who: whom to start"):
        launch("""<include file="$(dirname)/sub/inner.launch.xml"/>""")


@pytest.mark.parametrize(("body", "problem"), [
    ("<nodes/>", r"x\.launch\.xml:2: element <nodes> is not known inside <launch>"),
    ("<timer/>", "element <timer> is not known"),
    ("\n<node pkg='p' exec='e' wrong='1'/>", r":3: <node>: attribute 'wrong' is not known here; known: pkg, exec"),
    ("<node pkg='p'/>", "<node>: attribute 'exec' is missing"),
    ("<node pkg='p' exec='e'><param name='x' value='1' sep=','/></node>", "<param>: attribute 'sep'"),
    ("<node pkg='p' exec='e'><param name='x'/></node>", "needs name and value"),
    ("<node pkg='p' exec='e'><param name='x'><param name='y' value='1'/></param></node>",
     "<param> is not known inside <param>"),
    ("<node pkg='p' exec='e'><param name='x' value='1.5' type='int'/></node>", ":2: <node>: <param name=\"x\">: .* type int"),
    ("<node pkg='p' exec='e'><param from='/no/such.yaml'/></node>", "there is no file /no/such.yaml"),
    ("<node pkg='p' exec='e' if='1' unless='1'/>", "'if' and 'unless' cannot"),
    ("<node pkg='p' exec='e' if='perhaps'/>", "neither true nor false"),
    ("<node pkg='p' exec='e' output='log'/>", "output=\"log\" is not known; known: screen, both"),
    ("<node pkg='p' exec='e' on_exit='restart'/>", "on_exit=\"restart\""),
    ("<node pkg='p' exec='e' respawn_delay='-1'/>", "negative"),
    ("<node pkg='p' exec='e' sigterm_timeout='inf'/>", "sigterm_timeout=\"inf\" is negative or not finite"),
    ("<node pkg='p' exec='e' sigkill_timeout='$(var x)'/>", "sigkill_timeout=.* is not a number of seconds"),
    ("<let name='x' value='$(evil)'/>", r":2: <let>: substitution \$\(evil\) is not known here; known: \$\(var\)"),
    ("<arg name='x' default='c'><choice value='a'/><choice value='b'/></arg>", "x:=c is not one of: a, b"),
    ("<include file='x.launch.xml'/>", r"begin it with \$\(dirname\)"),
    ("<include file='$(dirname)/x.launch.xml'/>", "includes itself"),
    ("<include file='$(dirname)/none.launch.xml'/>", "cannot read launch file .*none"),
    ("<include file='$(dirname)/x.launch.py'/>", "only XML launch files"),
    ("some text", "text between elements: some text"),
    ("<node", "x.launch.xml:3: not XML"),
])
def test_what_is_not_in_the_subset_is_refused_by_name(launch, body, problem):
    with pytest.raises(ConfigError, match=problem):
        launch(body)


def test_arguments_are_checked(launch):
    body = """<arg name="a" description="the first"/><arg name="b"/><arg name="c" default="3"/>
              <node pkg="p" exec="e" args="$(var a)$(var b)$(var c)"/>"""
    with pytest.raises(ConfigError, match=r"needs 2 more argument\(s\).*\n  a: the first\n  b: no description given"):
        launch(body)
    with pytest.raises(ConfigError, match=r"unknown argument\(s\) d; known: a, b, c"):
        launch(body, a="1", b="2", d="4")
    assert launch(body, a="1", b="2", c="9")[0].arguments == ("129",)
    assert parse_assignments(["a:=1", "b:=x:=y", "a:=", "c:=2"]) == {"a": "", "b": "x:=y", "c": "2"}
    with pytest.raises(ConfigError, match="name:=value"):
        parse_assignments(["a=1"])


# -- the shipped files


def test_every_shipped_file_explains_itself(capsys):
    files = shipped()
    assert {"twin", "teleop", "record", "deploy"} <= set(files)
    assert main(["up"]) == 0
    listing = capsys.readouterr().out
    for name, path in files.items():
        file = read_launch_file(path)
        assert file.description and file.description in listing
        assert {argument.name for argument in file.arguments} >= USUAL
        for argument in file.arguments:
            assert argument.description, f"{name}: {argument.name} has no description"
            assert (argument.default is None) == (argument.name in REQUIRED.get(name, {})), f"{name}: {argument.name}"
        assert "no description given" not in arguments_text(file)


def test_shipped_files_end_as_a_whole_and_start_the_packages_they_depend_on():
    for name, path in shipped().items():
        manifest = (path.resolve().parents[1] / "package.xml").read_text()
        package = path.resolve().parents[1].name
        for node in evaluate_launch_file(path, REQUIRED.get(name)):
            assert node.ends_run, f"{name}: ros2 launch would go on without {node.executable}"
            assert package == node.package or f"<exec_depend>{node.package}</exec_depend>" in manifest
        assert all(f"<exec_depend>{key}</exec_depend>" in manifest for key in ("launch_ros", "launch_xml", "ros2launch"))


@pytest.mark.long
def test_every_parameter_of_the_shipped_files_reaches_its_node(tmp_path, ros_domain):
    """Every node runs as its launch file starts it; what a parameter file sets wins over the other arguments."""
    own = tmp_path / "own.yaml"
    own.write_text("/**:\n  ros__parameters:\n    min_free_mb: 7\n    operator: from the file\n")
    given = {
        "twin": {"seed": "3", "variation": "objects=unseen", "camera_rate_hz": "5", "lockstep": "1"},
        "teleop": {"noise": "0", "rate_hz": "10"},
        "record": {"task": "007", "instruction": "push: the red cube", "params_file": str(own), "operator": "argument",
                   "output_directory": str(tmp_path)},
        "console": {"port": "0", "linear_speed_m_s": "0.05", "domain": "standin", "output_directory": str(tmp_path)},
        "deploy": {"checkpoint": "1", "record": "true", "lockstep": "true", "output_directory": str(tmp_path), "shadow": "true",
                   "asynchronous": "false", "max_slowdown": "2", "remote_timeout_s": "3", "device": "cpu"},
        "camera": {"source": "/dev/video3", "width": "640", "camera_rate_hz": "30", "fourcc": "MJPG", "loop": "false"},
        "cell": {"kind": "trajectory", "gripper": "forward", "interpolate_hz": "100", "camera_rate_hz": "15", "rate_hz": "40",
                 "task": "push_cube", "clear_height_m": "0.15"},
        "evaluate": {"protocol": "mine.yaml", "use_sim_time": "true"},
        "train": {"config": "push_cube_stage2", "stage": "2", "overrides": "['seed=1', 'iterations=3']"},
    }
    graph = {"twin": ["sim"], "teleop": ["gate", "teleop"], "record": ["recorder"],
             "console": ["gate", "recorder", "console"], "deploy": ["gate", "policy", "recorder"],
             "camera": ["camera"], "cell": ["gate", "arm_adapter", "camera", "start"], "train": ["trainer"],
             "evaluate": ["evaluator"]}
    assert set(graph) == set(shipped()), "a new launch file has to be tried here, too"
    with Processes(tmp_path / "logs", ros_domain) as processes, RosClient("reader", ros_domain, processes.check) as client:
        wanted = {}
        for file, names in graph.items():
            nodes = evaluate_launch_file(shipped()[file], {**given[file], "autostart": "false", "namespace": f"x/{file}"})
            assert len(nodes) == len(names)
            for name, node in zip(names, nodes, strict=True):
                label = f"{file}_{name}"
                processes.start(label, node_command(node, tmp_path / "logs", label))
                wanted[f"/x/{file}/{name}"] = {key: value for part in node.parameters if isinstance(part, dict)
                                               for key, value in part.items()}
        wanted["/x/record/recorder"] |= {"min_free_mb": 7, "operator": "from the file"}
        actual = {name: read_parameters(client, name, set(values)) for name, values in wanted.items()}
    assert actual == wanted
    assert actual["/x/record/recorder"]["task"] == "007"
    assert actual["/x/deploy/recorder"]["use_sim_time"] is True
    assert actual["/x/teleop/teleop"]["noise"] == 0.0
    assert actual["/x/camera/camera"]["rate_hz"] == 30.0
    assert actual["/x/cell/gate"]["rate_hz"] == 40.0
    assert actual["/x/train/trainer"]["overrides"] == ["seed=1", "iterations=3"]


def read_parameters(client: RosClient, node: str, names: set[str]) -> dict:
    """Values of a node's parameters; fails for a name that the node does not declare."""
    declared = client.call(ListParameters, f"{node}/list_parameters", timeout_s=60.0).result.names
    assert names <= set(declared), f"{node} has no parameter {names - set(declared)}"
    answer = client.call(GetParameters, f"{node}/get_parameters", GetParameters.Request(names=sorted(names)))
    return dict(zip(sorted(names), map(parameter_value_to_python, answer.values), strict=True))


# -- running


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(name=source, ...): an installed package `things` with these Python programs; returns the prefix."""
    def install(**sources: str) -> Path:
        prefix = tmp_path / "prefix"
        for folder in ("lib/things", "share/ament_index/resource_index/packages"):
            (prefix / folder).mkdir(parents=True, exist_ok=True)
        (prefix / "share/ament_index/resource_index/packages/things").touch()
        for name, source in sources.items():
            path = prefix / "lib/things" / name
            path.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{source}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("AMENT_PREFIX_PATH", f"{prefix}:{os.environ.get('AMENT_PREFIX_PATH') or sys.prefix}")
        return prefix

    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    monkeypatch.setenv("WAITING", str(tmp_path / "waiting"))
    return install


def write(tmp_path: Path, body: str) -> str:
    path = tmp_path / "run.launch.xml"
    path.write_text(f"<launch>{body}</launch>")
    return str(path)


WAITS = """
def note(number, frame):
    print('got', signal.Signals(number).name, flush=True)
    raise SystemExit(0)
signal.signal(signal.SIGINT, note)
print('waiting', os.getpid(), flush=True)
open(os.environ['WAITING'], 'w').close()
time.sleep(60)
"""
ONCE_THE_OTHER_WAITS = "while not os.path.exists(os.environ['WAITING']): time.sleep(0.02)\n"


def test_a_node_that_fails_ends_the_run_with_its_status_and_last_words(programs, tmp_path, capsys):
    programs(waits=WAITS, dies=ONCE_THE_OTHER_WAITS + "print('my last words'); raise SystemExit(3)")
    started = time.monotonic()
    status = main(["up", write(tmp_path, "<node pkg='things' exec='waits'/><node pkg='things' exec='dies'/>")])
    out, error = capsys.readouterr()
    assert status == 3
    assert "[dies] my last words" in out and "[waits] got SIGINT" in out
    assert "process 'dies'" in error and "exit status 3" in error and "my last words" in error
    assert time.monotonic() - started < 10.0
    assert gone(int(next(line for line in out.splitlines() if "[waits] waiting" in line).split()[-1]))


def test_a_signal_that_kills_a_node_is_its_status(programs, tmp_path, capsys):
    programs(dies="os.kill(os.getpid(), signal.SIGKILL)")
    assert main(["up", write(tmp_path, "<node pkg='things' exec='dies'/>")]) == 128 + signal.SIGKILL
    assert "signal SIGKILL" in capsys.readouterr().err


def test_nodes_that_finish_end_the_run_when_all_have_or_when_the_file_says_so(programs, tmp_path, capsys):
    programs(short="print(sys.argv[1], os.environ['GIVEN'])", waits=WAITS)
    node = "<node pkg='things' exec='short' args='{}'><env name='GIVEN' value='here'/></node>"
    assert main(["up", write(tmp_path, node.format("one") + node.format("two"))]) == 0
    out = capsys.readouterr().out
    assert "[short] one here" in out and "[short-2] two here" in out
    programs(ends=ONCE_THE_OTHER_WAITS)
    ends = "<node pkg='things' exec='ends' on_exit='shutdown'/>"
    assert main(["up", write(tmp_path, ends + "<node pkg='things' exec='waits'/>")]) == 0
    assert "[waits] got SIGINT" in capsys.readouterr().out


def test_a_respawned_node_starts_again(programs, tmp_path, capsys):
    count = tmp_path / "count"
    programs(dies=f"open({str(count)!r}, 'a').write('x'); raise SystemExit(1)",
             ends=f"while not os.path.exists({str(count)!r}) or os.path.getsize({str(count)!r}) < 3: time.sleep(0.02)")
    body = ("<node pkg='things' exec='dies' respawn='true' respawn_delay='0.05'/>"
            "<node pkg='things' exec='ends' on_exit='shutdown'/>")
    assert main(["up", write(tmp_path, body)]) == 0
    assert "[dies] ended with status 1; starts again in 0.05 s" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_node_in_order(programs, tmp_path, number):
    programs(waits=WAITS)
    file = write(tmp_path, "<node pkg='things' exec='waits'/><node pkg='things' exec='waits'/>")
    with subprocess.Popen([*COMMAND, file], stdout=subprocess.PIPE, text=True) as run:
        pids = []
        while len(pids) < 2:
            line = run.stdout.readline()
            assert line, "the run ended by itself"
            if "waiting" in line:
                pids.append(int(line.split()[-1]))
        run.send_signal(number)
        rest = run.stdout.read()
    assert run.returncode == 0
    assert rest.count("got SIGINT") == 2
    assert all(map(gone, pids))


FINISHES_AFTER_THE_USUAL_TIME = """
def finish(number, frame):
    time.sleep(6.0)
    print('saved', flush=True)
    raise SystemExit(0)
signal.signal(signal.SIGINT, finish)
print('waiting', flush=True)
time.sleep(60)
"""
IGNORES = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
print('waiting', flush=True)
time.sleep(60)
"""


def test_a_node_has_the_time_to_finish_that_its_file_gives_it(programs, tmp_path):
    programs(saves=FINISHES_AFTER_THE_USUAL_TIME, ignores=IGNORES)
    file = write(tmp_path, "<node pkg='things' exec='saves' sigterm_timeout='120'/><node pkg='things' exec='ignores'/>")
    with subprocess.Popen([*COMMAND, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        waiting = 0
        while waiting < 2:
            line = run.stdout.readline()
            assert line, "the run ended by itself"
            waiting += "waiting" in line
        run.send_signal(signal.SIGINT)
        rest, error = run.communicate(timeout=60)
    assert "[saves] is asked to stop and has 120 s to finish what it does" in rest
    assert "[saves] saved" in rest
    assert "process 'ignores'" in error and "signal SIGTERM" in error, "the other had no more than usual"


def test_the_trainer_has_minutes_to_finish_its_iteration():
    node, = evaluate_launch_file(shipped()["train"], REQUIRED["train"])
    assert node.sigterm_timeout_s == 300.0


@pytest.mark.parametrize(("arguments", "problem"), [
    (["nothing"], "no launch file 'nothing'; shipped: twin"), (["twin", "tsk:=x"], r"unknown argument\(s\) tsk; known: "),
    (["deploy"], "checkpoint: directory of the policy"), (["twin", "seed:=x"], "<param name=\"seed\">: 'x' is not of type int"),
])
def test_the_command_refuses_by_name(arguments, problem, capsys):
    assert main(["up", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(problem, error)


def test_missing_programs_are_named_before_anything_starts(programs, tmp_path, capsys):
    programs(waits="open('started', 'w')")
    assert main(["up", write(tmp_path, "<node pkg='things' exec='waits'/><node pkg='things' exec='wait'/>")]) == 1
    assert "has no executable 'wait'" in capsys.readouterr().err
    assert not Path("started").exists()


def test_the_arguments_of_a_file_are_listed(capsys):
    assert main(["up", "twin", "--show-args"]) == 0
    out = capsys.readouterr().out
    assert "\n    'task':\n        task of the episodes" in out
    assert "(default: 'push_cube')" in out


def test_rlco_up_serves_the_stand_in_and_leaves_nothing_behind(tmp_path, ros_domain, monkeypatch):
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path))
    assert package_share("rlco_sim_bridge").is_dir()
    with (subprocess.Popen([*COMMAND, "twin", "task:=push_cube", "domain:=standin", "seed:=1"]) as run,
          RosClient("visitor", ros_domain) as client):
        try:
            client.wait_active("/sim", 120.0)
            image = client.wait_for_message(Image, "/front_camera/image_raw", qos=CAMERA_QOS, timeout_s=20.0)
            assert (image.encoding, image.header.frame_id != "") == ("rgb8", True)
            children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True).stdout
            bridges = list(map(int, children.split()))
            assert len(bridges) == 1
        finally:
            run.send_signal(signal.SIGINT)
        assert run.wait(30) == 0
    assert all(map(gone, bridges))

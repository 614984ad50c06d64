import { Hands } from "./jog.js";

const $ = (id) => document.getElementById(id);
const RETRY_MS = 1000, SILENT_MS = 1500, BLIND_MS = 1500, ALIVE_MS = 1000, NOTE_MS = 3000, WARNING_NOTE_MS = 9000;
const LABELS = {
  move: ["forward", "left", "right", "back", "up", "down"],
  turn: ["tip forward", "roll left", "roll right", "tip back", "turn left", "turn right"],
};
const KEY_NAMES = { move: ["W", "A", "D", "S", "R", "F"], turn: ["I", "J", "L", "K", "Q", "E"] };
const DRIVERS = { OPERATOR: "operator", POLICY: "policy", PLANNED: "planned move" };

let socket = null, hello = null, state = null, heardAt = 0, stateAt = 0, pictureAt = 0, mode = "move";

// A token in the address has become a cookie; it need not stay where it is seen and copied.
if (location.search.includes("token=")) history.replaceState(null, "", location.pathname);

const connected = () => socket !== null && socket.readyState === WebSocket.OPEN;
const operating = () => connected() && hello !== null && state !== null && state.control.operator === hello.you;
const latched = () => state !== null && (state.gate.state === "STOPPED" || state.gate.state === "FAULT");

function send(message) {
  if (connected()) socket.send(JSON.stringify(message));
}

// -- the connection

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/socket`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => {
    heardAt = performance.now();
    if (event.data instanceof ArrayBuffer) showPicture(event.data);
    else receive(JSON.parse(event.data));
  };
  socket.onclose = () => {
    hello = null;
    hands.allUp();
    draw();
    setTimeout(connect, RETRY_MS);
  };
}

function receive(message) {
  if (message.do === "hello") {
    hello = message;
    hands.periodMs = Math.max(40, message.heartbeat_ms / 3);
    const flipped = localStorage.getItem("flipped");
    hands.flipped = flipped === null ? message.facing : flipped === "yes";
    drawCameras();
    fillTasks();
  } else if (message.do === "state") {
    state = message;
    stateAt = performance.now();
    if (operating()) hands.confirm(state.control.pressing);
    else hands.allUp();
  } else if (message.do === "episodes") drawEpisodes(message);
  else if (message.do === "note") note(message.text, message.good);
  draw();
}

let pictureUrl = null;
async function showPicture(buffer) {
  const number = new DataView(buffer).getUint32(0);
  const url = URL.createObjectURL(new Blob([new Uint8Array(buffer, 4)], { type: "image/jpeg" }));
  const image = $("picture");
  const shown = new Promise((resolve) => { image.onload = () => resolve(true); image.onerror = () => resolve(false); });
  image.src = url;
  if (await shown) pictureAt = performance.now();
  if (pictureUrl) URL.revokeObjectURL(pictureUrl);
  pictureUrl = url;
  send({ shown: number });
}

setInterval(() => send({ do: "alive" }), ALIVE_MS);
setInterval(() => {
  if (connected() && heardAt && performance.now() - heardAt > SILENT_MS) hands.allUp();
  draw();
}, 250);

// -- the hands

const hands = new Hands({
  send,
  echo: () => ({ echo_ms: state.now_ms, echo_age_ms: performance.now() - stateAt }),
  allowed: () => {
    if (operating() && !latched()) return true;
    note(operating() ? "The gate is latched: re-arm it first." : "Take control first.", false);
    return false;
  },
  onChange: drawPads,
  onLost: () => note("Released: the connection was too slow. Let go and press again.", false),
});
for (const button of document.querySelectorAll("[data-jog]")) {
  hands.bind(button, () => ({ kind: mode, index: Number(button.dataset.jog) }));
}
for (const button of document.querySelectorAll("[data-grip]")) {
  hands.bind(button, () => ({ kind: "grip", index: Number(button.dataset.grip) }));
}
for (const button of $("mode").children) {
  button.onclick = () => { hands.allUp(); mode = button.dataset.mode; select($("mode"), button); drawPads(); };
}
for (const button of $("speed").children) {
  button.onclick = () => { hands.allUp(); hands.speed = Number(button.dataset.speed); select($("speed"), button); };
}
$("flip").onclick = () => {
  hands.allUp();
  hands.flipped = !hands.flipped;
  localStorage.setItem("flipped", hands.flipped ? "yes" : "no");
  drawPads();
};

function select(group, chosen) {
  for (const button of group.children) button.classList.toggle("on", button === chosen);
}

// -- buttons

function stop() {
  hands.allUp();
  send({ do: "stop" });
  fetch("/stop", { method: "POST", keepalive: true }).catch(() => {
    if (!connected()) note("NOT STOPPED: no connection. Use the robot's own emergency stop.", false);
  });
}
$("stop").addEventListener("pointerdown", stop);
$("stop").onclick = (event) => { if (event.detail === 0) stop(); };      // by the keyboard
addEventListener("keydown", (event) => { if (event.key === "Escape" && !event.repeat) stop(); });

$("control").onclick = () => {
  if (operating()) { send({ do: "give" }); return; }
  $("name").value = localStorage.getItem("name") ?? "";
  $("who").showModal();
};
$("who").onclose = () => {
  if ($("who").returnValue !== "ok") return;
  localStorage.setItem("name", $("name").value.trim());
  send({ do: "take", name: $("name").value.trim() });
};
$("start").onclick = () => send({ do: "record", what: "start" });
$("success").onclick = () => send({ do: "record", what: "success" });
$("fail").onclick = () => send({ do: "record", what: "fail" });
$("scene").onclick = () => send({ do: "nextscene" });
$("choose").onsubmit = (event) => {
  event.preventDefault();
  send({ do: "episode", task: $("choose-task").value, instruction: $("choose-text").value.trim() });
};
$("choose-task").onchange = fillWordings;
hold($("rearm"), () => send({ do: "rearm" }));
hold($("discard"), () => send({ do: "record", what: "discard" }));
hold($("policy"), () => send({ do: "policy", enable: !state.gate.policy_enabled }), () => state?.gate.policy_enabled);

// An action that must be meant: it happens after the button was held for as long as data-hold says; at once where
// `immediate` says so.
function hold(button, act, immediate = () => false) {
  let started = null, frame = 0;
  const cancel = () => {
    started = null;
    cancelAnimationFrame(frame);
    button.style.removeProperty("--held");
  };
  const step = () => {
    const share = (performance.now() - started) / Number(button.dataset.hold);
    button.style.setProperty("--held", `${Math.min(100, 100 * share)}%`);
    if (share >= 1) { cancel(); act(); } else frame = requestAnimationFrame(step);
  };
  const begin = () => {
    if (button.disabled || started !== null) return;
    if (immediate()) { act(); return; }
    started = performance.now();
    step();
  };
  button.addEventListener("pointerdown", begin);
  button.addEventListener("keydown", (event) => { if ([" ", "Enter"].includes(event.key) && !event.repeat) begin(); });
  for (const kind of ["pointerup", "pointerleave", "pointercancel", "keyup", "blur"]) button.addEventListener(kind, cancel);
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}

// -- drawing

function draw() {
  drawLink();
  drawPicture();
  if (state === null) { drawPads(); return; }
  const { gate, control, recorder, episode, arm } = state;
  const mine = operating();
  $("gate").className = `gate ${latched() || gate.state === "SILENT" ? "latched-state" : gate.causes.length ? "limited"
    : ["OPERATOR", "POLICY", "PLANNED"].includes(gate.state) ? "moving" : ""}`;
  $("gate-state").textContent = gate.state;
  $("gate-hint").textContent = gate.causes.length ? gate.causes.map((cause) => cause.text).join("; ") : gate.hint;
  $("operator").textContent = control.operator === null ? "nobody operates" : mine ? "you operate" : `${control.name} operates`;
  $("operator").classList.toggle("other", control.operator !== null && !mine);
  $("control").textContent = mine ? "Give back" : "Take control";
  $("control").classList.toggle("primary", !mine);
  $("control").disabled = !connected();
  $("latched").hidden = !latched();
  $("latched-title").textContent = gate.state === "FAULT" ? "Fault" : "Stopped";
  $("latched-text").textContent = gate.hint;
  $("rearm").disabled = !mine;
  const driver = DRIVERS[gate.source];
  $("driver").hidden = !driver;
  $("driver").textContent = driver ? `driven by the ${driver}` : "";
  $("policy").disabled = !mine || latched();
  $("policy").textContent = gate.policy_enabled ? "Take back from the policy" : "Hold to hand over to the policy";
  $("policy-text").textContent = gate.policy_enabled ? "The policy is in charge. Jogging takes over." : "The policy is off.";
  $("arm").textContent = (arm.position_m ? `x ${arm.position_m[0].toFixed(3)}  y ${arm.position_m[1].toFixed(3)}  z ${
    arm.position_m[2].toFixed(3)} m` : "the arm is not heard")
    + (arm.opening === null ? "" : `   gripper ${Math.round(100 * arm.opening)} %`);
  drawRecorder(recorder, mine);
  drawEpisode(episode, recorder, mine);
  drawPads();
}

function drawLink() {
  const silent = connected() && heardAt && performance.now() - heardAt > SILENT_MS;
  const [kind, text] = !connected() ? ["lost", "no connection"] : silent ? ["lost", "connection silent"]
    : state === null ? ["wait", "waiting for the node"] : ["ok", "connected"];
  $("link").className = `chip ${kind}`;
  $("link").textContent = text;
  document.body.classList.toggle("unlinked", kind === "lost");
}

function drawPicture() {
  const age = performance.now() - pictureAt;
  const blind = state?.camera_problem || (!connected() ? "no connection" : !pictureAt ? "waiting for a picture"
    : age > BLIND_MS ? `no new picture for ${Math.round(age / 1000)} s` : "");
  $("blind").hidden = !blind;
  $("blind").textContent = blind;
}

function drawRecorder(recorder, mine) {
  const recording = Boolean(recorder.recording);
  $("recording").hidden = !recording;
  const minutes = String(Math.floor(recorder.seconds / 60)).padStart(2, "0");
  $("recording").textContent = `REC ${minutes}:${String(recorder.seconds % 60).padStart(2, "0")}`;
  for (const id of ["start", "scene"]) $(id).hidden = recording;
  for (const id of ["success", "fail", "discard"]) $(id).hidden = !recording;
  for (const id of ["start", "scene", "success", "fail", "discard"]) $(id).disabled = !mine || !recorder.there;
  $("scene").disabled = !mine;
  const items = recorder.warnings.map((text) => ["", text]);
  if (!recorder.there || recorder.level > 0) items.unshift([recorder.level > 1 ? "bad" : "", recorder.message]);
  items.push(...state.troubles.map((trouble) => [trouble.level > 1 ? "bad" : "", `${trouble.name}: ${trouble.message}`]));
  if (recording && !items.length) items.push(["fine", "The audit has nothing to complain about."]);
  if (!recording && recorder.verdict === "no-go") {
    items.push(...recorder.reasons.map((text) => ["", `last episode: ${text}`]));
  }
  fill($("warnings"), items.map(([kind, text]) => element("li", { className: kind, textContent: text })));
}

function drawEpisode(episode, recorder, mine) {
  const where = [episode.task.replaceAll("_", " "), episode.domain, episode.seed >= 0 ? `scene ${episode.seed}` : ""];
  $("task").textContent = where.filter(Boolean).join(" · ") || "no task yet";
  $("instruction").textContent = episode.instruction || "no instruction yet";
  $("choose").hidden = episode.fixed || Boolean(recorder.recording) || !mine;
  $("scene").hidden ||= !episode.simulated;
}

function drawPads() {
  const turning = mode === "turn";
  $("hands").classList.toggle("off", !operating() || latched());
  $("hands").classList.toggle("turning", turning);
  for (const button of document.querySelectorAll("[data-jog]")) {
    const index = Number(button.dataset.jog);
    button.querySelector("use").setAttribute("href", turning && index > 3 ? "#turn" : "#arrow");
    setText(button.querySelector("i"), LABELS[mode][hands.flipped && index < 4 ? 3 - index : index]);
    setText(button.querySelector("kbd"), KEY_NAMES[mode][index]);
    button.classList.toggle("down-now", hands.holds(mode, index));
  }
  for (const button of document.querySelectorAll("[data-grip]")) {
    button.classList.toggle("down-now", hands.holds("grip", Number(button.dataset.grip)));
  }
  setText($("flip").querySelector("small"), hands.flipped ? "facing the robot" : "robot's own view");
}

function drawCameras() {
  $("cameras").hidden = hello.cameras.length < 2;
  fill($("cameras"), hello.cameras.map((name, index) => {
    const button = element("button", { textContent: name.replaceAll("_", " "), className: index ? "" : "on" });
    button.onclick = () => { select($("cameras"), button); pictureAt = 0; send({ camera: name }); };
    return button;
  }));
}

function fillTasks() {
  fill($("choose-task"), Object.keys(hello.tasks).map((name) => element("option", { value: name, textContent: name.replaceAll("_", " ") })));
  fillWordings();
}

function fillWordings() {
  fill($("wordings"), (hello.tasks[$("choose-task").value] ?? []).map((text) => element("option", { value: text })));
}

function drawEpisodes({ total, successes, episodes, problem }) {
  $("tally").textContent = problem ?? (total ? `${total} recorded, ${successes} successful` : "");
  const rows = episodes.map((episode) => {
    const audit = episode.audit ? (episode.audit.go ? ["ok", "audit: go"] : ["wait", "audit: no-go"]) : null;
    const row = element("li", { className: episode.success === true ? "yes" : episode.success === false ? "no" : "",
                                title: episode.audit?.reasons.join("\n") ?? "" });
    row.append(element("b", { textContent: episode.success === true ? "✓" : episode.success === false ? "✗" : "?" }));
    const about = element("div");
    about.append(element("span", { textContent: episode.instruction ?? episode.problem ?? "" }),
                 element("small", { textContent: [episode.name, episode.operator, episode.repaired ? "repaired" : ""].filter(Boolean).join(" · ") }));
    row.append(about);
    if (audit) row.append(element("span", { className: `chip ${audit[0]}`, textContent: audit[1] }));
    return row;
  });
  fill($("episodes"), rows.length ? rows : [element("li", { className: "none", textContent: "No episode yet." })]);
}

function note(text, good) {
  if ([...$("notes").children].some((shown) => shown.textContent === text)) return;
  const shown = element("p", { textContent: text, className: good ? "" : "bad" });
  $("notes").append(shown);
  setTimeout(() => shown.remove(), good ? NOTE_MS : WARNING_NOTE_MS);
}

function element(kind, properties = {}) {
  return Object.assign(document.createElement(kind), properties);
}

function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

// Replace the children only when they differ, so that nothing flickers and a selection survives.
function fill(parent, children) {
  const fresh = element(parent.tagName);
  fresh.append(...children);
  if (fresh.innerHTML !== parent.innerHTML) parent.replaceChildren(...fresh.childNodes);
}

connect();
draw();

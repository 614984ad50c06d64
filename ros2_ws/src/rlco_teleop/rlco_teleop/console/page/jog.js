// The operator's hands: what is pressed, by finger, mouse or key, becomes one pressing that is told again and again
// until everything is up. Losing sight of the page in any way is everything up.

const KEYS = {
  KeyW: ["move", 0], KeyS: ["move", 3], KeyA: ["move", 1], KeyD: ["move", 2], KeyR: ["move", 4], KeyF: ["move", 5],
  ArrowUp: ["move", 0], ArrowDown: ["move", 3], ArrowLeft: ["move", 1], ArrowRight: ["move", 2],
  PageUp: ["move", 4], PageDown: ["move", 5],
  KeyI: ["turn", 0], KeyK: ["turn", 3], KeyJ: ["turn", 1], KeyL: ["turn", 2], KeyQ: ["turn", 4], KeyE: ["turn", 5],
  KeyO: ["grip", 1], KeyC: ["grip", 0],
};
// Per button of the pad (up, left, right, down, rise, sink) the axis of the twist (x y z roll pitch yaw) and the direction.
export const PADS = {
  move: [[0, 1], [1, 1], [1, -1], [0, -1], [2, 1], [2, -1]],
  turn: [[4, 1], [3, -1], [3, 1], [4, -1], [5, 1], [5, -1]],
};
const HELD_OUT_MS = 700;    // the console should have said by now that it has the pressing

export class Hands {
  // send(message), echo(): which state the page has and for how long; allowed(): may the hands act;
  // onChange(): something went down or up; onLost(): the console let go
  constructor({ send, echo, allowed, onChange, onLost }) {
    Object.assign(this, { send, echo, allowed, onChange, onLost });
    this.down = new Map();      // what holds it (pointer or key) -> {axes, gripper}
    this.press = 0;
    this.since = 0;
    this.lost = false;          // told that it counts no more: all has to be up before the next
    this.speed = 0.5;
    this.flipped = false;
    this.timer = null;
    this.periodMs = 100;
    addEventListener("keydown", (event) => this.onKey(event, true));
    addEventListener("keyup", (event) => this.onKey(event, false));
    for (const kind of ["blur", "pagehide"]) addEventListener(kind, () => this.allUp());
    document.addEventListener("visibilitychange", () => { if (document.hidden) this.allUp(); });
  }

  bind(button, what) {
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      button.setPointerCapture(event.pointerId);
      this.press_(`pointer${event.pointerId}`, what());
    });
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) {
      button.addEventListener(kind, (event) => this.up(`pointer${event.pointerId}`));
    }
  }

  onKey(event, isDown) {
    if (event.key === "Meta") this.allUp();      // while it is down, macOS does not tell that other keys go up
    const found = KEYS[event.code];
    if (!found) return;
    if (!isDown) { this.up(event.code); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea, dialog[open]")) return;
    event.preventDefault();
    if (event.repeat) return;
    this.press_(event.code, { kind: found[0], index: found[1] });
  }

  press_(source, { kind, index }) {
    if (!this.allowed()) return;
    const axes = [0, 0, 0, 0, 0, 0];
    let gripper = null;
    if (kind === "grip") gripper = index;
    else {
      const [axis, sign] = PADS[kind][index];
      const turned = this.flipped && (axis === 0 || axis === 1 || axis === 3 || axis === 4);
      axes[axis] = turned ? -sign : sign;
    }
    if (this.down.size === 0) { this.press += 1; this.since = performance.now(); }
    this.down.set(source, { kind, index, axes, gripper });
    if (this.timer === null) this.timer = setInterval(() => this.tell(), this.periodMs);
    this.tell();
    this.onChange();
  }

  up(source) {
    if (!this.down.delete(source)) return;
    if (this.down.size === 0) this.finish();
    else this.tell();
    this.onChange();
  }

  allUp() {
    if (this.down.size === 0) return;
    this.down.clear();
    this.finish();
    this.onChange();
  }

  finish() {
    clearInterval(this.timer);
    this.timer = null;
    if (!this.lost) this.send({ do: "release" });
    this.lost = false;
  }

  tell() {
    if (this.lost || this.down.size === 0) return;
    const axes = [0, 0, 0, 0, 0, 0];
    let gripper = null;
    for (const held of this.down.values()) {
      held.axes.forEach((value, axis) => { axes[axis] += value; });
      if (held.gripper !== null) gripper = held.gripper;
    }
    this.send({ do: "jog", press: this.press, ...this.echo(), gripper,
                axes: axes.map((value) => Math.max(-1, Math.min(1, value)) * this.speed) });
  }

  // The console says which pressing counts at present.
  confirm(pressing) {
    if (this.down.size && !this.lost && pressing !== this.press && performance.now() - this.since > HELD_OUT_MS) {
      this.lost = true;
      this.onLost();
      this.onChange();
    }
  }

  holds(kind, index) {
    return !this.lost && [...this.down.values()].some((held) => held.kind === kind && held.index === index);
  }
}

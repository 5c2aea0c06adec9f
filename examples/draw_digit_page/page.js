"use strict";

const SIDE = 56; // the server takes SIDE * SIDE levels
const PEN = 44; // width of a stroke, in pixels of the pad
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FAINT = 16; // how dark an empty map is, of 255
const MAPS = {
  input: { size: 28, count: 1, columns: 1 },
  conv1: { size: 28, count: 32, columns: 8 },
  conv2: { size: 14, count: 64, columns: 16 },
};

const element = (id) => document.getElementById(id);
const pad = element("pad");
const ink = pad.getContext("2d");
const small = new OffscreenCanvas(SIDE, SIDE).getContext("2d", { willReadFrequently: true });
const pen = { x: pad.width / 2, y: pad.height / 2, down: false }; // moved by the keyboard
const strokes = new Map(); // pointer id -> its last position

ink.lineWidth = PEN;
ink.lineCap = ink.lineJoin = "round";
small.imageSmoothingQuality = "high";

// Drawing ------------------------------------------------------------------------------------

function stroke(from, to) {
  ink.beginPath();
  ink.moveTo(from.x, from.y);
  ink.lineTo(to.x, to.y);
  ink.stroke();
  ask();
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * pad.width,
    y: ((event.clientY - box.top) / box.height) * pad.height,
  };
}

function clear() {
  ink.clearRect(0, 0, pad.width, pad.height);
  lift(false);
  ask();
}

function lift(down) {
  pen.down = down;
  element("pen").classList.toggle("down", down);
}

function showPen() {
  element("pen").style.left = `${(100 * pen.x) / pad.width}%`;
  element("pen").style.top = `${(100 * pen.y) / pad.height}%`;
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  pad.setPointerCapture(event.pointerId);
  strokes.set(event.pointerId, place(event));
  stroke(place(event), place(event));
});

pad.addEventListener("pointermove", (event) => {
  if (!strokes.has(event.pointerId)) return;
  const between = event.getCoalescedEvents?.() ?? [];
  for (const moved of between.length ? between : [event]) {
    stroke(strokes.get(event.pointerId), place(moved));
    strokes.set(event.pointerId, place(moved));
  }
});

for (const end of ["pointerup", "pointercancel"]) {
  pad.addEventListener(end, (event) => strokes.delete(event.pointerId));
}

pad.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key in KEYS) {
    const [dx, dy] = KEYS[event.key].map((direction) => (direction * pad.width) / 28);
    const before = { x: pen.x, y: pen.y };
    pen.x = Math.min(Math.max(pen.x + dx, 0), pad.width);
    pen.y = Math.min(Math.max(pen.y + dy, 0), pad.height);
    showPen();
    if (pen.down) stroke(before, pen);
  } else if (event.key === " " || event.key === "Enter") {
    if (event.repeat) return;
    lift(!pen.down);
    say(pen.down ? "Pen down." : "Pen up.");
    if (pen.down) stroke(pen, pen);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  event.preventDefault(); // no scrolling
});

element("clear").addEventListener("click", clear);

// Requests: one at a time, always with the newest drawing ----------------------------------------

let asking = false;
let changed = false;

async function ask() {
  changed = true;
  if (asking) return;
  asking = true;
  while (changed) {
    changed = false;
    const pixels = levels();
    if (pixels.some((level) => level > 0)) await look(pixels);
    else show(null);
  }
  asking = false;
}

async function look(pixels) {
  try {
    const response = await fetch("look", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ pixels }),
    });
    const answer = await response.json();
    if (response.ok) show(answer);
    else say(`Not understood: ${answer.error}.`);
  } catch {
    say("The server does not answer; start it again.");
  }
}

function levels() {
  small.clearRect(0, 0, SIDE, SIDE);
  small.drawImage(pad, 0, 0, SIDE, SIDE);
  const rgba = small.getImageData(0, 0, SIDE, SIDE).data;
  return Array.from({ length: SIDE * SIDE }, (_, i) => rgba[4 * i + 3]);
}

// Results ----------------------------------------------------------------------------------------

const bars = Array.from({ length: 10 }, (_, digit) => {
  const row = document.createElement("li");
  const [name, bar, fill, percent] = ["name", "bar", "fill", "percent"].map((part) => {
    const span = document.createElement("span");
    span.className = part;
    return span;
  });
  name.textContent = digit;
  bar.append(fill);
  row.append(name, bar, percent);
  element("bars").append(row);
  return { row, fill, percent };
});

const percentOf = (probability) => `${Math.round(100 * probability)}%`;

function show(answer) {
  const probabilities = answer ? answer.probabilities : Array(10).fill(0);
  const best = answer ? probabilities.indexOf(Math.max(...probabilities)) : null;
  bars.forEach(({ row, fill, percent }, digit) => {
    row.classList.toggle("best", digit === best);
    fill.style.transform = `scaleX(${probabilities[digit]})`;
    percent.textContent = percentOf(probabilities[digit]);
  });
  element("best").textContent = best ?? "?";
  for (const id of Object.keys(MAPS)) paint(element(id), MAPS[id], answer?.maps[id]);
  sayLater(
    answer
      ? `It looks like a ${best} (${percentOf(probabilities[best])}).`
      : "Draw a digit from 0 to 9.",
  );
}

// Draws the maps row by row, a pixel apart; without maps, empty tiles.
function paint(canvas, { size, count, columns }, text) {
  const context = canvas.getContext("2d");
  const levels = text ? atob(text) : "\0".repeat(size * size * count);
  for (let map = 0; map < count; map++) {
    const tile = context.createImageData(size, size); // black; the level is how opaque it is
    for (let i = 0; i < size * size; i++) {
      const level = levels.charCodeAt(map * size * size + i);
      tile.data[4 * i + 3] = FAINT + (level * (255 - FAINT)) / 255;
    }
    const [row, column] = [Math.floor(map / columns), map % columns];
    context.putImageData(tile, column * (size + 1), row * (size + 1));
  }
}

let later;

function say(text) {
  clearTimeout(later);
  element("said").textContent = text;
}

// Screen readers are told when the pen rests, not at every move.
function sayLater(text) {
  clearTimeout(later);
  later = setTimeout(say, 400, text);
}

showPen();
show(null);

"use strict";

const SIDE = 56; // the server takes SIDE * SIDE levels
const PEN = 44; // width of a stroke, in pixels of the pad
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FAINT = 16; // how dark an empty map is, of 255
const SHAPE = 4; // how much wider than high a picture of maps is

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
  if (asking || !maps.length) return; // `start` asks again
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

let classes = []; // their names
let bars = [];
let maps = []; // {canvas, height, width, count, columns}
let invitation = "";

const percentOf = (probability) => `${Math.round(100 * probability)}%`;

function make(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

async function start() {
  let model;
  try {
    model = await (await fetch("model")).json();
  } catch {
    say("The server does not answer; start it again.");
    return;
  }
  classes = model.classes;
  bars = classes.map(addBar);
  maps = model.maps.map(addMaps);
  const digits = classes.join() === "0,1,2,3,4,5,6,7,8,9";
  invitation = digits ? "Draw a digit from 0 to 9." : `Draw one of: ${classes.join(", ")}.`;
  element("title").textContent = document.title = digits ? "Draw a digit" : "Draw";
  const longest = Math.max(...classes.map((name) => name.length));
  const list = element("bars");
  list.style.setProperty("--name", `${Math.min(longest, 12)}ch`);
  list.style.setProperty("--rows", Math.ceil(classes.length / 2)); // of two columns, on a phone
  list.classList.toggle("short", longest <= 2);
  ask();
}

function addBar(name) {
  const row = make("li");
  const bar = make("span", "bar");
  const fill = make("span", "fill");
  const percent = make("span", "percent");
  bar.append(fill);
  row.append(make("span", "name", name), bar, percent);
  element("bars").append(row);
  return { row, fill, percent };
}

function addMaps({ name, size: [height, width], count }) {
  const columns = Math.min(Math.ceil(Math.sqrt((count * SHAPE * height) / width)), count);
  const canvas = make("canvas");
  canvas.width = columns * (width + 1) - 1;
  canvas.height = Math.ceil(count / columns) * (height + 1) - 1;
  canvas.style.setProperty("--width", canvas.width);
  const first = name === "input";
  const what = first ? "The drawing, scaled and centred" : `${count} feature maps of ${name}`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", what);
  const figure = make("figure", first ? "input" : "");
  const sizes = `${height} × ${width}`;
  figure.append(canvas, make("figcaption", "", first
    ? `Input: ${sizes}, scaled and centred like MNIST`
    : `${name}: ${count} maps of ${sizes}`));
  element("maps").append(figure);
  return { canvas, height, width, count, columns };
}

function show(answer) {
  const probabilities = answer ? answer.probabilities : classes.map(() => 0);
  const best = answer ? probabilities.indexOf(Math.max(...probabilities)) : -1;
  bars.forEach(({ row, fill, percent }, number) => {
    row.classList.toggle("best", number === best);
    fill.style.transform = `scaleX(${probabilities[number]})`;
    percent.textContent = percentOf(probabilities[number]);
  });
  const name = answer ? classes[best] : "?";
  element("best").textContent = name.length > 2 ? "" : name;
  maps.forEach((map, number) => paint(map, answer?.maps[number]));
  const article = name.length > 2 ? "" : "a ";
  sayLater(
    answer ? `It looks like ${article}${name} (${percentOf(probabilities[best])}).` : invitation,
  );
}

// Draws the maps row by row, a pixel apart; without maps, empty tiles.
function paint({ canvas, height, width, count, columns }, text) {
  const context = canvas.getContext("2d");
  const levels = text ? atob(text) : "\0".repeat(height * width * count);
  for (let map = 0; map < count; map++) {
    const tile = context.createImageData(width, height); // black; the level is how opaque it is
    for (let i = 0; i < height * width; i++) {
      const level = levels.charCodeAt(map * height * width + i);
      tile.data[4 * i + 3] = FAINT + (level * (255 - FAINT)) / 255;
    }
    const [row, column] = [Math.floor(map / columns), map % columns];
    context.putImageData(tile, column * (width + 1), row * (height + 1));
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
start();

// The page: what is typed becomes a drawing or a question, and every step is shown as it comes. It knows elements and
// canvases; how a step is made is written in model.js. `?bundle=URL` opens another bundle than the small model.

import { Model } from "./model.js";

const SMALL_MODEL = "../../mmada_lite/models/emoji/";
const at = (id) => document.getElementById(id);
const buttons = [at("draw"), at("ask"), at("complete")];
let model = null;
let drawn = null; // the finished picture, ImageData
let stopping = null; // set while a drawing runs: a call ends it after the present step

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

const fill = (share) => (at("done").style.width = `${100 * share}%`);

/** Let the browser paint what was drawn. A hidden page gets no frames, so a timer goes on without them. */
const painted = () =>
  new Promise((go) => {
    requestAnimationFrame(() => setTimeout(go));
    setTimeout(go, 1000);
  });

/** Run one task: buttons rest meanwhile, and whatever goes wrong is said in the status line. */
async function run(task) {
  for (const button of buttons) button.disabled = true;
  try {
    await task();
  } catch (error) {
    fill(0);
    say(error.message ?? String(error), true);
  }
  at("complete").disabled = !model;
  at("draw").disabled = !model?.grid;
  at("ask").disabled = !model || Boolean(model.grid && !drawn); // a model without pictures is asked about nothing
}

async function load() {
  const base = new URLSearchParams(location.search).get("bundle") ?? SMALL_MODEL;
  model = await Model.open(base, (done, total) => {
    fill(done / total);
    say(`Loading the bundle: ${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`);
  });
  at("steps").value = model.defaults.image.steps;
  at("guidance").value = model.defaults.image.guidance;
  fill(0);
  if (model.grid) at("command").textContent = command(chosen());
  const { resolution, grid } = model;
  const about = grid ? `${resolution} × ${resolution} pixels, ${grid ** 2} codes` : "texts, no pictures";
  say(`“${model.manifest.name}” is ready: ${about}.`);
  document.body.dataset.ready = "yes";
}

function chosen() {
  const seed = at("seed").value.trim();
  if (!/^\d+$/.test(seed) || BigInt(seed) >= 1n << 64n) throw new Error(`the seed “${seed}” is not a whole number from 0 to 2^64 - 1`);
  const steps = Number(at("steps").value);
  if (!(Number.isInteger(steps) && steps >= 1 && steps <= model.grid ** 2)) {
    throw new Error(`the steps “${at("steps").value}” are not a whole number from 1 to ${model.grid ** 2}`);
  }
  const guidance = at("guidance").value === "" ? NaN : Number(at("guidance").value);
  if (!(guidance >= 0)) throw new Error("the guidance is not a number of at least 0");
  return { caption: at("caption").value, seed: BigInt(seed), settings: { ...model.defaults.image, steps, guidance } };
}

function show(canvas, { width, height, data }) {
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}

/** Cover the cells that are still masks. */
function veil(masked) {
  const canvas = at("veil");
  [canvas.width, canvas.height] = [model.grid, model.grid];
  const brush = canvas.getContext("2d");
  brush.fillStyle = "rgb(128 128 128 / 0.55)";
  for (const place of masked) brush.fillRect(place % model.grid, Math.floor(place / model.grid), 1, 1);
}

function keep(step) {
  const frame = document.createElement("li");
  const canvas = document.createElement("canvas");
  show(canvas, step.picture);
  frame.append(canvas, String(step.index + 1));
  at("film").append(frame);
}

/** The same drawing on the command line, quoted for a shell. */
function command({ caption, seed, settings: { steps, guidance } }) {
  const quoted = `'${caption.replaceAll("'", "'\\''")}'`;
  return `mmada-lite paint ${quoted} --seed ${seed} --steps ${steps} --guidance ${guidance}`;
}

const pace = (step) => `${((1000 * step.seconds) / (step.index + 1)).toFixed(0)} ms`;

async function draw() {
  const wanted = chosen();
  let [stopped, last] = [false, null];
  stopping = () => (stopped = true);
  [at("draw").disabled, at("draw").textContent] = [false, "Stop"];
  say("Drawing…");
  await painted();
  for await (const step of model.paint(wanted.caption, wanted.settings, wanted.seed)) {
    if (!last) clear(wanted);
    last = step;
    show(at("picture"), step.picture);
    veil(step.masked);
    keep(step);
    fill((step.index + 1) / step.totalSteps);
    say(`Step ${step.index + 1} of ${step.totalSteps}: ${step.remaining} codes to go, ${pace(step)} a step`);
    document.dispatchEvent(new CustomEvent("step", { detail: step })); // for whoever embeds or tests the page
    await painted();
    if (stopped) break;
  }
  veil([]);
  drawn = new ImageData(last.picture.data, last.picture.width, last.picture.height);
  const kind = last.remaining ? "Stopped" : "Drawn";
  say(`${kind} after ${last.seconds.toFixed(1)} s: ${last.index + 1} steps, ${pace(last)} each`);
}

/** The first step of a new drawing takes the place of the last drawing and what was said about it. */
function clear(wanted) {
  drawn = null;
  at("film").replaceChildren();
  at("answer").textContent = "";
  at("command").textContent = command(wanted);
}

async function ask() {
  at("answer").textContent = "…";
  for await (const step of model.ask(at("question").value, drawn)) {
    at("answer").textContent = step.text;
    await painted();
  }
}

async function fillHoles() {
  for await (const step of model.fill(at("holes").value)) {
    at("filled").textContent = step.text;
    await painted();
  }
}

at("drawing").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (stopping) return stopping();
  await run(draw);
  stopping = null;
  at("draw").textContent = "Draw";
  document.dispatchEvent(new Event("drawn"));
});

at("asking").addEventListener("submit", async (event) => {
  event.preventDefault();
  await run(ask);
  document.dispatchEvent(new Event("answered"));
});

at("filling").addEventListener("submit", async (event) => {
  event.preventDefault();
  await run(fillHoles);
  document.dispatchEvent(new Event("filled"));
});

run(load);

// The page of the server: chat, fill holes, ask about a picture, paint, inpaint. It speaks the server's own routes, and streams every step:
// a text appears as masks that resolve, a picture as it is drawn.

const SIDE = 256; // pixels of the easel: a picture is cut to its central square
const at = (id) => document.getElementById(id);
const verb = () => document.querySelector("input[name=verb]:checked").value;
const surface = at("mask").getContext("2d");
const cursor = { x: SIDE / 2, y: SIDE / 2 };
let talk = []; // the conversation so far
let shown = false; // a picture is on the easel
let running = null; // what stops the request that runs

function headers(more = {}) {
  return at("key").value ? { authorization: `Bearer ${at("key").value}`, ...more } : more;
}

function tell(text) {
  at("status").textContent = text;
}

function show() {
  const pictured = verb() === "ask" || verb() === "inpaint";
  at("given").hidden = !pictured;
  at("mask").hidden = at("brushes").hidden = verb() !== "inpaint";
  at("hint").hidden = verb() !== "fill";
  const asked = { chat: "Message", fill: "Text with holes", ask: "Question", paint: "What to paint", inpaint: "What to draw there" };
  at("asked").textContent = asked[verb()];
}

function line(kind, text) {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  at("talk").append(item);
}

async function open(file) {
  try {
    const image = await createImageBitmap(file);
    const side = Math.min(image.width, image.height);
    const context = at("picture").getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, SIDE, SIDE);
    context.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, SIDE, SIDE);
    at("picture").setAttribute("aria-label", `Your picture ${file.name}`);
    shown = true;
    tell(`${file.name} is on the easel`);
  } catch {
    tell(`${file.name} is no picture that this browser reads`);
  }
}

function dab(x, y) {
  surface.fillStyle = "white";
  surface.beginPath();
  surface.arc(x, y, at("brush").value / 2, 0, 2 * Math.PI);
  surface.fill();
}

function blob(canvas) {
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// The mask as the server reads it: white on black.
function mask() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, SIDE, SIDE);
  context.drawImage(at("mask"), 0, 0);
  return blob(canvas);
}

// The objects of a stream of server-sent events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const pieces = (rest + part.value).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) {
      const data = piece.slice(piece.indexOf("data: ") + 6);
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function* ask(path, body, named = {}) {
  const response = await fetch(path, { method: "POST", body, headers: headers(named), signal: running.signal });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    yield event;
  }
}

const json = (content) => [JSON.stringify(content), { "content-type": "application/json" }];
const seed = () => (at("seed").value ? { seed: Number(at("seed").value) } : {});

async function write(words) {
  const content = [{ type: "text", text: words }];
  if (verb() === "ask") content.push({ type: "image_url", image_url: { url: at("picture").toDataURL("image/png") } });
  const before = verb() === "chat" ? talk : [];
  const messages = [...before, { role: "user", content: verb() === "ask" ? content : words }];
  line("user", words);
  let thought = "";
  let answer = "";
  for await (const chunk of ask("/v1/chat/completions", ...json({ messages, stream: true, stream_mode: "denoise", ...seed() }))) {
    if (chunk.denoise) at("forming").textContent = chunk.denoise.text;
    thought += chunk.choices[0]?.delta.reasoning_content ?? "";
    answer += chunk.choices[0]?.delta.content ?? "";
  }
  if (thought) line("thought", thought);
  line("assistant", answer);
  if (verb() === "chat" && answer) talk = [...messages, { role: "assistant", content: answer }];
  tell(answer || "The answer is empty");
}

async function fill(words) {
  line("user", words);
  let text = "";
  for await (const chunk of ask("/v1/completions", ...json({ prompt: words, stream: true, stream_mode: "denoise", ...seed() }))) {
    if (chunk.denoise) at("forming").textContent = chunk.denoise.text;
    text += chunk.choices[0]?.text ?? "";
  }
  line("assistant", text);
  tell(text);
}

async function draw(words) {
  let path = "/v1/images/generations";
  let sent = json({ prompt: words, stream: true, preview_every: 1, ...seed() });
  if (verb() === "inpaint") {
    const form = new FormData();
    form.append("image", await blob(at("picture")), "picture.png");
    form.append("mask", await mask(), "mask.png");
    for (const [name, value] of Object.entries({ prompt: words, stream: true, preview_every: 1, ...seed() })) form.append(name, value);
    [path, sent] = ["/v1/images/edits", [form]];
  }
  for await (const event of ask(path, ...sent)) {
    if (!event.b64_json) continue;
    at("drawn").src = `data:image/png;base64,${event.b64_json}`;
    at("drawn").alt = `Drawing: ${words}`;
    at("drawn").hidden = false;
    if (event.type.endsWith("completed")) tell(`The drawing is done, from seed ${event.seed}`);
  }
}

async function go(event) {
  event.preventDefault();
  const words = at("words").value.trim();
  if (running || !words) return;
  if ((verb() === "ask" || verb() === "inpaint") && !shown) return tell("Choose a picture first");
  running = new AbortController();
  at("go").disabled = !(at("stop").disabled = false);
  const work = { chat: write, fill, ask: write, paint: draw, inpaint: draw }[verb()];
  const text = work !== draw;
  at("forming").hidden = !text;
  at("forming").textContent = "";
  tell("Working");
  try {
    await work(words);
    if (work === write) at("words").value = "";
  } catch (error) {
    tell(error.name === "AbortError" ? "Stopped" : error.message);
  }
  at("forming").hidden = true;
  at("go").disabled = !(at("stop").disabled = true);
  running = null;
}

function keys(event) {
  const step = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] }[event.key];
  if (step) {
    cursor.x = Math.min(SIDE, Math.max(0, cursor.x + step[0]));
    cursor.y = Math.min(SIDE, Math.max(0, cursor.y + step[1]));
    tell(`Brush at ${cursor.x}, ${cursor.y} of ${SIDE}`);
  } else if (event.key === " ") {
    dab(cursor.x, cursor.y);
    tell(`Painted at ${cursor.x}, ${cursor.y}`);
  } else {
    return;
  }
  event.preventDefault();
}

function stroke(event) {
  if (event.buttons) dab(event.offsetX, event.offsetY);
}

at("form").addEventListener("submit", go);
at("verbs").addEventListener("change", show);
at("stop").addEventListener("click", () => running?.abort());
at("anew").addEventListener("click", () => {
  talk = [];
  at("talk").replaceChildren();
  tell("A new conversation");
});
at("clear").addEventListener("click", () => surface.clearRect(0, 0, SIDE, SIDE));
at("file").addEventListener("change", () => at("file").files[0] && open(at("file").files[0]));
at("mask").addEventListener("pointerdown", stroke);
at("mask").addEventListener("pointermove", stroke);
at("mask").addEventListener("keydown", keys);
at("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) go(event);
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  if (verb() !== "inpaint") document.querySelector("input[value=ask]").checked = true;
  show();
});
show();
fetch("/v1/models", { headers: headers() })
  .then((response) => response.json())
  .then((list) => (at("model").textContent = list.data?.[0].id ?? "(give its key below)"))
  .catch(() => tell("The server does not answer"));

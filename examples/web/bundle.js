// A bundle over HTTP: bundle.json first, then every file that drawing and answering need, each checked by its sha256. It
// knows where the bytes are and what they are called; graphs are run and ids are read elsewhere.

export const GRAPHS = ["embedder", "backbone", "text_head", "image_head", "image_encoder", "image_decoder"];
const NEWEST = 1; // format version

/**
 * Read the bundle in the folder at `base`. `onProgress(done, total)` counts bytes.
 * Returns { manifest, files }: bundle.json and a map from file names to Uint8Array.
 */
export async function openBundle(base, onProgress = () => {}) {
  const folder = new URL(base.endsWith("/") ? base : `${base}/`, document.baseURI);
  const manifest = await (await get(new URL("bundle.json", folder))).json();
  check(manifest, folder);
  const names = ["tokenizer.json", "weights.bin", ...GRAPHS.map((graph) => manifest.graphs[graph].file)];
  const total = names.reduce((sum, name) => sum + manifest.files[name].size, 0);
  let done = 0;
  const count = (bytes) => onProgress((done += bytes), total);
  const read = names.map(async (name) => [name, await verified(new URL(name, folder), name, manifest.files[name], count)]);
  return { manifest, files: new Map(await Promise.all(read)) };
}

function check(manifest, folder) {
  if (manifest.format !== "mmada-lite-bundle") throw new Error(`${folder} holds no bundle; its bundle.json says "${manifest.format}"`);
  if (manifest.format_version > NEWEST) {
    throw new Error(`this bundle has format ${manifest.format_version} and the page reads ${NEWEST}; use a newer page`);
  }
  const missing = GRAPHS.find((graph) => !(graph in manifest.graphs));
  if (missing) throw new Error(`this bundle has no graph "${missing}"; export it with its image tokenizer`);
}

async function get(url) {
  const response = await fetch(url).catch(() => null);
  if (!response) throw new Error(`no answer for ${url}; is the server still running?`);
  if (!response.ok) throw new Error(`${url} answers ${response.status}; serve the folder of the bundle too`);
  return response;
}

async function verified(url, name, { size, sha256 }, count) {
  const bytes = new Uint8Array(size);
  let filled = 0;
  for (let reader = (await get(url)).body.getReader(), part; !(part = await reader.read()).done; ) {
    if (filled + part.value.length > size) throw new Error(`${name} is longer than bundle.json says; copy the bundle again`);
    bytes.set(part.value, filled);
    filled += part.value.length;
    count(part.value.length);
  }
  if (filled !== size) throw new Error(`${name} has ${filled} bytes of ${size}; copy the bundle again`);
  if (globalThis.crypto?.subtle && (await digest(bytes)) !== sha256) throw new Error(`${name} is damaged; copy the bundle again`);
  return bytes; // crypto.subtle exists on https and on this machine alone; elsewhere the sizes must do
}

async function digest(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

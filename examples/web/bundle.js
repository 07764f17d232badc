// A bundle over HTTP: bundle.json first, then every file that drawing and answering need, each checked by its sha256.
// It knows where the bytes are and what they are called; graphs are run and ids are read elsewhere.

import { IMPLIED, translated } from "./format_1.js";
import { checkRows } from "./rows.js";
import { complete } from "./settings.js";

const GRAPHS = ["embedder", "backbone", "text_head", "image_head"];
const PICTURES = ["image_encoder", "image_decoder"]; // the image tokenizer, which a model of texts alone has not
const NEWEST = 2; // format version
const FAMILIES = ["mmada"];
const NEEDS = []; // what a bundle may ask of a host beyond docs/bundle.md, and this page has
const HALF_CACHES = "float16_caches"; // which programs for processors have
const KEYS = ["family", "needs", "rows", "architecture", "vocabulary", "image", "defaults", "graphs", "files"];

/** The names of the graphs of a bundle, from its manifest. */
export const graphsOf = ({ image }) => (image ? [...GRAPHS, ...PICTURES] : GRAPHS);

/**
 * Read the bundle in the folder at `base`. `onProgress(done, total)` counts bytes.
 * Returns { manifest, files }: bundle.json and a map from file names to Uint8Array.
 * bundle.json reads as format 2 with every setting, also those that it leaves out; without an image tokenizer its `image` is
 * null, without a text tokenizer there is no tokenizer.json. What the page cannot do is refused before a large file is fetched.
 */
export async function openBundle(base, onProgress = () => {}) {
  const folder = new URL(base.endsWith("/") ? base : `${base}/`, document.baseURI);
  const manifest = checked(await (await get(new URL("bundle.json", folder))).json(), folder);
  const tokenizer = ["tokenizer.json"].filter((name) => name in manifest.files);
  const names = [...tokenizer, "weights.bin", ...graphsOf(manifest).map((graph) => manifest.graphs[graph].file)];
  const total = names.reduce((sum, name) => sum + manifest.files[name].size, 0);
  let done = 0;
  const count = (bytes) => onProgress((done += bytes), total);
  const read = names.map(async (name) => [name, await verified(new URL(name, folder), name, manifest.files[name], count)]);
  return { manifest, files: new Map(await Promise.all(read)) };
}

/** bundle.json as the page uses it. Throws for what this page does not have. */
function checked(content, folder) {
  const { format, format_version: version } = content;
  if (format !== "mmada-lite-bundle") throw new Error(`${folder} holds no bundle; its bundle.json says "${format}"`);
  if (!(Number.isInteger(version) && version >= 1 && version <= NEWEST)) {
    throw new Error(`this bundle has format ${version} and the page reads up to ${NEWEST}; use a newer page`);
  }
  const manifest = version === 1 ? { ...content, ...IMPLIED } : content;
  const absent = KEYS.find((key) => !(key in manifest));
  if (absent) throw new Error(`bundle.json has no "${absent}"; copy the bundle again`);
  if (!FAMILIES.includes(manifest.family)) {
    throw new Error(`this bundle is of the family "${manifest.family}", the page knows ${FAMILIES}; use a newer page`);
  }
  const need = manifest.needs.find((name) => !NEEDS.includes(name));
  const mend = need === HALF_CACHES ? "export it without --cache-precision" : "use a newer page";
  if (need) throw new Error(`this bundle needs "${need}", which the page does not have; ${mend}`);
  const image = PICTURES.some((graph) => graph in manifest.graphs) ? manifest.image : null;
  const missing = graphsOf({ image }).find((graph) => !(graph in manifest.graphs));
  if (missing) throw new Error(`this bundle has no graph "${missing}"; copy the bundle again`);
  checkRows(manifest.rows, manifest.vocabulary.special);
  const { text, image: pictures } = manifest.defaults;
  return { ...manifest, image, defaults: { text: settings("text", text, version), image: settings("image", pictures, version) } };
}

function settings(kind, said, version) {
  try {
    return complete(kind, version === 1 ? translated(kind, said) : said);
  } catch (fault) {
    throw new Error(`defaults.${kind} of bundle.json: ${fault.message}`);
  }
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

// Pictures of any size to squares of the model's, in the bytes that docs/bundle.md says, and masks with them. It knows pixels
// alone: where they come from, and what they are turned into, is decided elsewhere.

const LARGEST = 64_000_000; // pixels
const BITS = 2 ** 22; // what a weight counts in

/**
 * RGBA bytes of a picture { data, width, height } as a square of `side` pixels, transparency laid on white. "crop": the
 * shorter side to `side`, then the centre; "squash": both sides, whatever the proportions.
 */
export function fitted(picture, side, how = "crop") {
  check(picture, 4);
  const { width, height, left, top, rowsFirst } = windowOf(picture, side, how);
  const across = (image) => resized(image, width, left, side);
  const down = (image) => resized(image, height, top, side);
  const flat = onWhite(picture);
  const square = rowsFirst ? turned(across(down(turned(flat)))) : down(across(flat));
  const data = new Uint8ClampedArray(side * side * 4).fill(255);
  for (let i = 0; i < side * side; i++) for (let c = 0; c < 3; c++) data[4 * i + c] = square.data[3 * i + c];
  return { data, width: side, height: side };
}

/**
 * A mask { data, width, height }, a number a pixel and 0 where it covers nothing, as its picture is cropped: a pixel is the
 * largest number of those that it overlaps, so that no stroke is lost.
 */
export function fittedMask(mask, side) {
  check(mask, 1);
  const { width, height, left, top } = windowOf(mask, side, "crop");
  return largest(largest(mask, width, left, side), height, top, side);
}

function check({ data, width, height }, channels) {
  const said = `the picture is said to be ${width} x ${height} pixels`;
  const whole = Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0;
  if (!whole || data.length !== channels * width * height) {
    throw new Error(`${said} and holds ${data.length} numbers; give ${channels} for each pixel`);
  }
  if (width * height > LARGEST) throw new Error(`${said}; scale it below ${LARGEST} pixels`);
}

/** What a picture is scaled to, where in it the square begins that is kept, and which direction comes first. */
function windowOf({ width, height }, side, how) {
  if (how !== "crop" && how !== "squash") throw new Error(`no way to fit a picture is called "${how}"; use crop or squash`);
  const other = how === "squash" ? side : Math.trunc((side * Math.max(width, height)) / Math.min(width, height));
  if (side * other > LARGEST) {
    throw new Error(`a picture of ${width} x ${height} pixels is too long to be cut to a square; crop it first`);
  }
  const half = Math.floor((other - side) / 2);
  const rest = (other - side) % 2 && half % 2 ? half + 1 : half; // rounded half to even
  const size = width <= height ? { width: side, height: other, left: 0, top: rest } : { width: other, height: side, left: rest, top: 0 };
  return { ...size, rowsFirst: height - size.height > Math.max(0, 2 * (width - size.width)) };
}

/** RGB of RGBA: each number in steps of 1/128, rounded as alpha compositing over an opaque ground does. */
function onWhite({ data, width, height }) {
  const flat = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    const alpha = data[4 * i + 3];
    for (let c = 0; c < 3; c++) {
      const sum = data[4 * i + c] * alpha * 128 + 255 * (255 - alpha) * 128 + 128 * 128;
      flat[3 * i + c] = alpha === 255 ? data[4 * i + c] : ((sum >> 8) + sum) >> 15;
    }
  }
  return { data: flat, width, height };
}

function cubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
}

/** The first column that a new one is made of, and their weights; one column, of weight 1, where the width stays. */
function weightsOf(width, size, column) {
  if (width === size) return { first: column, weights: [BITS] };
  const scale = width / size;
  const wide = Math.max(scale, 1);
  const centre = (column + 0.5) * scale;
  const first = Math.max(Math.trunc(centre - 2 * wide + 0.5), 0);
  const past = Math.min(Math.trunc(centre + 2 * wide + 0.5), width);
  const shares = Array.from({ length: past - first }, (_, i) => cubic((first + i - centre + 0.5) * (1 / wide)));
  const total = shares.reduce((sum, share) => sum + share, 0);
  const counts = shares.map((share) => (total ? share / total : share) * BITS);
  return { first, weights: counts.map((count) => Math.trunc(count + (count < 0 ? -0.5 : 0.5))) };
}

/** RGB with `count` columns, from `from` on, of the `size` that its width becomes; they become rows. */
function resized({ data, width, height }, size, from, count) {
  const out = new Uint8ClampedArray(3 * count * height);
  for (let x = 0; x < count; x++) {
    const { first, weights } = weightsOf(width, size, x + from);
    for (let y = 0; y < height; y++) {
      for (let c = 0; c < 3; c++) {
        const start = 3 * (y * width + first) + c;
        let sum = BITS / 2;
        for (let i = 0; i < weights.length; i++) sum += data[start + 3 * i] * weights[i];
        out[3 * (x * height + y) + c] = Math.floor(sum / BITS);
      }
    }
  }
  return { data: out, width: height, height: count };
}

const turned = (image) => resized(image, image.width, 0, image.width);

/** The same of a mask: the largest of the columns that a new one overlaps. */
function largest({ data, width, height }, size, from, count) {
  const out = new Uint8Array(count * height);
  for (let x = 0; x < count; x++) {
    const [first, past] = [Math.floor(((x + from) * width) / size), Math.ceil(((x + from + 1) * width) / size)];
    for (let y = 0; y < height; y++) {
      for (let i = first; i < past; i++) out[x * height + y] = Math.max(out[x * height + y], data[y * width + i]);
    }
  }
  return { data: out, width: height, height: count };
}

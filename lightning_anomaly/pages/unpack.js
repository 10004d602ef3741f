// The blocks of bytes inside a page, by name; all but the images are compressed.

function bytesOf(name) {
  const text = atob(document.getElementById(name).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

export async function unpack(name) {
  const stream = new Blob([bytesOf(name)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** The index of a page, and its images as one bitmap, or null. */
export async function openIndex() {
  const index = JSON.parse(new TextDecoder().decode(await unpack("index")));
  return [index, index.images ? await createImageBitmap(new Blob([bytesOf("sprite")])) : null];
}

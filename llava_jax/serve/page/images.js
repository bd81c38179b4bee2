/** Image files of the user: what is accepted, and how they are read. Files are sent as they are, never resized. */

const TYPES = {
  "image/png": "PNG",
  "image/jpeg": "JPEG",
  "image/webp": "WebP",
  "image/gif": "GIF",
  "image/bmp": "BMP",
};

/** An image of a question. In a JSON request it becomes its data URI. */
export class Picture {
  constructor(name, url) {
    this.name = name;
    this.url = url;
  }

  toJSON() {
    return this.url;
  }
}

/** Reads a File or Blob. Throws an Error whose message is for the user if it is not an image that can be shown. */
export async function readPicture(file, name = file.name) {
  const accepted = Object.values(TYPES).join(", ");
  if (!(file.type in TYPES)) throw new Error(`“${name}” is not an image of a supported type (${accepted}).`);
  const url = await dataUri(file, name);
  const image = new Image();
  image.src = url;
  await image.decode().catch(() => {
    const reason = `the file is damaged, or its content is not ${TYPES[file.type]}`;
    throw new Error(`“${name}” cannot be read as an image: ${reason}.`);
  });
  return new Picture(name, url);
}

function dataUri(file, name) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`“${name}” cannot be read: ${reader.error.message}`));
    reader.readAsDataURL(file);
  });
}

/** The request of an answer as a program: curl in a POSIX shell, or Python with the package `openai`. */

import { Picture } from "./images.js";

/** Writes a value of JSON with indentation. `syntax` has text(string), picture(Picture), yes, no, nothing. */
function literal(value, syntax, indent = "") {
  if (value instanceof Picture) return syntax.picture(value);
  if (typeof value === "string") return syntax.text(value);
  if (value === null) return syntax.nothing;
  if (typeof value === "boolean") return value ? syntax.yes : syntax.no;
  if (typeof value !== "object") return String(value);
  const inner = `${indent}  `;
  const isList = Array.isArray(value);
  const items = Object.entries(value).map(([key, item]) => {
    const text = literal(item, syntax, inner);
    return isList ? `${inner}${text}` : `${inner}${syntax.text(key)}: ${text}`;
  });
  const [open, close] = isList ? "[]" : "{}";
  return `${open}\n${items.join(",\n")}\n${indent}${close}`;
}

function mediaType(picture) {
  return picture.url.slice("data:".length, picture.url.indexOf(";"));
}

/** A curl command. Images are read from files of the same names in the working directory. */
export function asCurl(body, origin, needsKey) {
  // Inside <<JSON the shell expands \, $ and `: those of the text are escaped, those of pictures run base64.
  const escaped = (text) => JSON.stringify(text).replace(/[\\$`]/g, "\\$&");
  const syntax = {
    text: escaped,
    picture: (picture) => `"data:${mediaType(picture)};base64,$(base64 < ${shellWord(picture.name)} | tr -d '\\n')"`,
    yes: "true",
    no: "false",
    nothing: "null",
  };
  const key = needsKey ? `  -H "Authorization: Bearer $LLAVA_JAX_KEY" \\\n` : "";
  return `curl --no-buffer '${origin}/v1/chat/completions' \\
  -H 'Content-Type: application/json' \\
${key}  --data-binary @- <<JSON
${literal(body, syntax)}
JSON
`;
}

function shellWord(name) {
  return `'./${name.replaceAll("'", "'\\''")}'`;
}

/** A Python program. Images are read from files of the same names in the working directory. */
export function asPython(body, origin, needsKey) {
  const hasPictures = body.messages.some(({ content }) => Array.isArray(content));
  const syntax = {
    text: (text) => JSON.stringify(text),
    picture: (picture) => `data_uri(${JSON.stringify(picture.name)}, "${mediaType(picture)}")`,
    yes: "True",
    no: "False",
    nothing: "None",
  };
  const key = needsKey ? 'os.environ["LLAVA_JAX_KEY"]' : '"unused"';
  const readImages = `
def data_uri(name, media_type):
    return f"data:{media_type};base64,{base64.b64encode(Path(name).read_bytes()).decode()}"

`;
  const imports = [hasPictures && "import base64", needsKey && "import os", hasPictures && "from pathlib import Path"];
  return `${imports.filter(Boolean).map((line) => `${line}\n`).join("")}
from openai import OpenAI
${hasPictures ? `\n${readImages}` : ""}
client = OpenAI(base_url="${origin}/v1", api_key=${key})
request = ${literal(body, syntax)}
for chunk in client.chat.completions.create(**request):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`.trimStart();
}

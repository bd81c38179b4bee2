/** The dialog that shows a request as a program, to copy. */

import { asCurl, asPython } from "./snippets.js";
import { byId } from "./view.js";

let shown = { body: null, needsKey: false };

/** Opens the dialog for the body of a request. */
export function showCode(body, needsKey) {
  shown = { body, needsKey };
  write();
  byId("code-dialog").showModal();
}

export function connectCodeDialog() {
  for (const id of ["as-curl", "as-python"]) byId(id).addEventListener("change", write);
  byId("copy").addEventListener("click", copy);
}

function write() {
  const program = byId("as-python").checked ? asPython : asCurl;
  byId("code").textContent = program(shown.body, location.origin, shown.needsKey);
  byId("code-files").hidden = shown.body.messages.every(({ content }) => typeof content === "string");
  byId("code-key").hidden = !shown.needsKey;
  byId("copied").textContent = "";
}

async function copy() {
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(byId("code").textContent);
  } catch {
    // Browsers have no navigator.clipboard for pages over http from a host other than this machine.
    getSelection().selectAllChildren(byId("code"));
    isCopied = document.execCommand("copy");
  }
  byId("copied").textContent = isCopied ? "Copied" : "Selected: press Ctrl+C to copy";
}

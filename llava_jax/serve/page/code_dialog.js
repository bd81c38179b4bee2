/** The dialog that shows a request as a program, to copy. */

import { hasKey } from "./client.js";
import { asCurl, asPython } from "./snippets.js";
import { byId } from "./view.js";

let shown = null; // the body of the request

export function showCode(body) {
  shown = body;
  write();
  byId("code-dialog").showModal();
}

export function connectCodeDialog() {
  for (const id of ["as-curl", "as-python"]) byId(id).addEventListener("change", write);
  byId("copy").addEventListener("click", copy);
}

function write() {
  const program = byId("as-python").checked ? asPython : asCurl;
  byId("code").textContent = program(shown, location.origin, hasKey());
  byId("code-files").hidden = shown.messages.every(({ content }) => typeof content === "string");
  byId("code-key").hidden = !hasKey();
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

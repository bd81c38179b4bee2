/** The chat page: its state, and what happens on each event. */

import { hasKey, request, RequestError, storeKey, streamAnswer } from "./client.js";
import { Picture, readPicture } from "./images.js";
import { connectCodeDialog, showCode } from "./code_dialog.js";
import * as view from "./view.js";

const { byId } = view;
const field = byId("question");
const MAX_SEED = 2 ** 31;

/** A turn: {question, pictures, element, answer, body, model, step, usage, finish, times, error}. */
const state = {
  info: null, // of /v1/llava_jax/info
  turns: [],
  attached: [], // Pictures of the next question
  editing: null, // index of the turn that the next question replaces
  draft: null, // what was in the question field before the edit
  running: null, // AbortController of the answer that is streaming
  reading: 0, // files that are being read
  afterKey: null, // what to repeat once there is a key
  retry: null, // timer of the next loadInfo
};

/* ---- the model behind the page */

async function loadInfo() {
  clearTimeout(state.retry);
  try {
    const response = await request("/v1/llava_jax/info");
    state.info = await response.json();
  } catch (error) {
    if (error.status === 401) askForKey(loadInfo);
    if (error.status === 503) state.retry = setTimeout(loadInfo, 1000 * (error.wait || 5)); // the model is loading
    byId("offline").hidden = false;
    byId("offline").classList.toggle("waiting", error.status === 503);
    byId("offline-message").textContent = error.message;
    return;
  }
  byId("offline").hidden = true;
  const { model, step, template, length, takes_images: takesImages, note, examples } = state.info;
  byId("model").textContent = model;
  byId("step").textContent = step === null ? "" : `step ${step.toLocaleString("en")}`;
  byId("model-line").title = `Template ${template}, up to ${length.toLocaleString("en")} tokens per conversation`;
  byId("note").textContent = note;
  byId("note").hidden = !note;
  byId("attach").hidden = !takesImages;
  byId("max_tokens").max = length;
  byId("max_tokens").value = Math.min(Number(byId("max_tokens").value), length);
  document.title = `${model} – llava_jax`;
  await showExamples(examples);
  update();
}

async function showExamples(examples) {
  const loaded = await Promise.allSettled(
    examples.map(async ({ image, question }) => {
      const response = await request(image); // not <img src>: this way the key is sent
      return { question, picture: await readPicture(await response.blob(), image.split("/").at(-1)) };
    }),
  );
  const usable = loaded.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  const cards = usable.map((example) => view.exampleCard(example, () => askExample(example)));
  byId("examples").replaceChildren(...cards);
}

function askExample({ question, picture }) {
  // The card has the focus and is about to be hidden. On a phone the field would open the keyboard over the answer.
  if (ask(question, [picture]) && matchMedia("(pointer: fine)").matches) field.focus();
}

function askForKey(repeat) {
  state.afterKey = repeat;
  byId("key-error").hidden = !hasKey();
  byId("key").value = "";
  byId("key-dialog").showModal();
}

function useKey(event) {
  event.preventDefault();
  storeKey(byId("key").value.trim());
  byId("key-dialog").close();
  state.afterKey();
}

/* ---- asking */

/** The sampling parameters as fields of a request, or null after showing which input is wrong. */
function readSettings() {
  const inputs = [...byId("parameters").querySelectorAll("input")];
  const wrong = inputs.find((input) => !input.checkValidity());
  if (wrong) {
    byId("parameters").open = true;
    wrong.reportValidity();
    return null;
  }
  const settings = Object.fromEntries(
    inputs.filter((input) => input.value !== "").map((input) => [input.id, Number(input.value)]),
  );
  // Without a seed the page draws one, so that every answer can be repeated. Greedy answers need none.
  if (settings.temperature !== 0) settings.seed ??= Math.floor(Math.random() * MAX_SEED);
  return settings;
}

/** The request for the answer to the last of `turns`. Earlier turns without an answer are left out. */
function requestBody(turns, settings) {
  const messages = turns.flatMap((turn, index) => {
    const message = { role: "user", content: content(turn) };
    if (index === turns.length - 1) return [message];
    return turn.answer ? [message, { role: "assistant", content: turn.answer }] : [];
  });
  return { model: state.info.model, messages, ...settings, stream: true, stream_options: { include_usage: true } };
}

function content({ question, pictures }) {
  if (pictures.length === 0) return question;
  const images = pictures.map((picture) => ({ type: "image_url", image_url: { url: picture } }));
  return question ? [...images, { type: "text", text: question }] : images;
}

/** Adds a turn and starts its answer. Returns false, with nothing changed, if that is not possible now. */
function ask(text, pictures) {
  if (state.running || !state.info) return false;
  const settings = readSettings();
  if (!settings) return false;
  if (state.editing !== null) dropTurns(state.editing);
  const turn = { question: text, pictures };
  state.turns.push(turn);
  turn.element = view.addTurn(turn, {
    edit: () => edit(state.turns.indexOf(turn)),
    regenerate: () => regenerate(),
    code: () => showCode(turn.body, state.info.needs_key),
  });
  answer(turn, settings);
  return true;
}

function regenerate() {
  if (state.running) return;
  if (state.editing !== null) cancelEdit();
  const settings = readSettings();
  if (settings) answer(state.turns.at(-1), settings);
}

/** Streams the answer to the last turn. Never throws: an error is shown in the turn. */
async function answer(turn, settings) {
  Object.assign(turn, { answer: "", error: null, usage: null, finish: "", step: state.info.step });
  turn.body = requestBody(state.turns, settings);
  turn.model = turn.body.model;
  turn.times = { start: performance.now() };
  state.running = new AbortController();
  view.startAnswer(turn.element);
  view.announce("The model is answering.");
  update();
  try {
    const result = await streamAnswer(turn.body, state.running.signal, (text) => {
      turn.times.last = performance.now();
      turn.times.first ??= turn.times.last;
      turn.answer += text;
      view.appendText(turn.element, text);
    });
    Object.assign(turn, result);
  } catch (error) {
    if (error.name === "AbortError") turn.finish = "stopped";
    else turn.error = error instanceof RequestError ? error : new RequestError("The server's response cannot be read.");
  }
  state.running = null;
  update();
  if (!state.turns.includes(turn)) return; // a new chat
  view.finishAnswer(turn.element, turn);
  view.announce(turn.error?.message ?? (turn.finish === "stopped" ? "Stopped." : ""));
  if (turn.error?.status === 401) askForKey(regenerate);
}

function stop() {
  state.running?.abort();
}

/* ---- changing the conversation */

function dropTurns(first) {
  for (const turn of state.turns.splice(first)) turn.element.remove();
  state.editing = state.draft = null;
}

function newChat() {
  stop();
  dropTurns(0);
  compose("", []);
  update();
  field.focus();
}

/** Puts an earlier question back into the field. Nothing is dropped until it is sent. */
function edit(index) {
  if (state.running) return;
  state.draft ??= { text: field.value, pictures: state.attached };
  state.editing = index;
  compose(state.turns[index].question, state.turns[index].pictures);
  update();
  field.focus();
}

function cancelEdit() {
  compose(state.draft.text, state.draft.pictures);
  state.editing = state.draft = null;
  update();
  field.focus();
}

/* ---- the question field */

function compose(text, pictures) {
  field.value = text;
  attach([...pictures]);
  view.showNotice("");
}

function attach(pictures) {
  state.attached = pictures;
  view.showAttached(pictures, (removed) => {
    attach(state.attached.filter((_, index) => index !== removed));
    field.focus();
  });
  update();
}

async function addFiles(files) {
  if (state.info && !state.info.takes_images) return view.showNotice("This model takes no images.");
  const all = [...files]; // a FileList empties when its input is reset
  state.reading += all.length;
  const results = await Promise.allSettled(all.map((file) => readPicture(file)));
  state.reading -= all.length;
  const refused = results.filter(({ status }) => status === "rejected").map(({ reason }) => reason.message);
  attach([...state.attached, ...results.filter(({ status }) => status === "fulfilled").map(({ value }) => value)]);
  view.showNotice(refused.join(" "));
  field.focus();
}

function send() {
  // Otherwise a question about an image could be sent without it.
  if (state.reading) return view.showNotice("The images are still being read.");
  const text = field.value.trim();
  if ((text || state.attached.length) && ask(text, state.attached)) compose("", []);
}

/** Shows the state in the controls. */
function update() {
  const isRunning = state.running !== null;
  const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
  byId("send").hidden = isRunning;
  byId("send").disabled = !state.info || (field.value.trim() === "" && state.attached.length === 0);
  byId("stop").hidden = !isRunning;
  if (hadFocus) (isRunning ? byId("stop") : field).focus(); // a hidden button loses the focus
  byId("start").hidden = state.turns.length > 0;
  byId("conversation").ariaBusy = String(isRunning);
  document.body.classList.toggle("answering", isRunning);
  byId("editing").hidden = state.editing === null;
  view.markTurns(state.turns, state.editing);
  field.rows = Math.min(8, field.value.split("\n").length); // for browsers without field-sizing
}

/* ---- events */

function onKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === field) {
    event.preventDefault();
    send();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (state.running) stop();
    else if (state.editing !== null) cancelEdit();
  }
}

function connectDrop() {
  const hasFiles = (event) => event.dataTransfer.types.includes("Files");
  const show = (isOver) => document.body.classList.toggle("dragging", isOver);
  document.addEventListener("dragover", (event) => {
    // Otherwise the browser opens the file or link instead of this page. Text may be dropped into the field.
    if (hasFiles(event) || event.target !== field) event.preventDefault();
    show(hasFiles(event));
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && show(false));
  document.addEventListener("drop", (event) => {
    show(false);
    if (event.target === field && !hasFiles(event)) return;
    event.preventDefault();
    if (hasFiles(event)) addFiles(event.dataTransfer.files);
  });
}

function connect() {
  document.addEventListener("keydown", onKey);
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length === 0) return;
    event.preventDefault();
    addFiles(event.clipboardData.files);
  });
  connectDrop();
  view.followEnd();
  field.addEventListener("input", update);
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("attach").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", async () => {
    await addFiles(byId("files").files);
    byId("files").value = ""; // so that the same file can be chosen again
  });
  byId("stop").addEventListener("click", stop);
  byId("new-chat").addEventListener("click", newChat);
  byId("cancel-edit").addEventListener("click", cancelEdit);
  byId("retry-info").addEventListener("click", loadInfo);
  byId("key-form").addEventListener("submit", useKey);
  connectCodeDialog();
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}

connect();
loadInfo();

/** Elements of the page, cloned from the templates of index.html. Text is set as text, never parsed as HTML. */

export const byId = (id) => document.getElementById(id);

let follows = true; // whether the view stays at the end of the conversation
let lastTop = 0;

const MIN_SPAN = 20; // milliseconds; tokens that arrive within less were sent together, whenever they were made
const FINISHES = {
  stop: "finish reason: stop",
  length: "finish reason: length (cut at the token limit)",
  stopped: "stopped by you",
};

function clone(template) {
  return byId(template).content.firstElementChild.cloneNode(true);
}

function part(element, name) {
  return element.querySelector(`[data-part="${name}"]`);
}

/** An image with its name as alternative text; small ones are enlarged without blur. */
function pictureElement(picture) {
  const image = document.createElement("img");
  image.alt = `Image: ${picture.name}`;
  image.title = picture.name;
  image.addEventListener("load", () => {
    image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= 128);
  });
  image.src = picture.url;
  return image;
}

/** Shows the images that the next question will have, each with a button that removes it. */
export function showAttached(pictures, onRemove) {
  const items = pictures.map((picture, index) => {
    const item = clone("attached-template");
    part(item, "image").replaceWith(pictureElement(picture));
    part(item, "name").textContent = picture.name;
    const button = part(item, "remove");
    button.ariaLabel = `Remove ${picture.name}`;
    button.addEventListener("click", () => onRemove(index));
    return item;
  });
  byId("attached").replaceChildren(...items);
  byId("attached").hidden = items.length === 0;
}

/** A card that asks an example's question. */
export function exampleCard({ picture, question }, onChoose) {
  const card = clone("example-template");
  const image = pictureElement(picture);
  image.alt = "";
  image.removeAttribute("title");
  part(card, "image").replaceWith(image);
  part(card, "question").textContent = question;
  card.addEventListener("click", onChoose);
  return card;
}

/** Adds a turn to the conversation: the question, and room for the answer. */
export function addTurn(turn, actions) {
  const element = clone("turn-template");
  part(element, "images").replaceChildren(...turn.pictures.map(pictureElement));
  part(element, "images").hidden = turn.pictures.length === 0;
  part(element, "question").textContent = turn.question;
  part(element, "question").hidden = turn.question === "";
  for (const [name, action] of Object.entries(actions)) part(element, name).addEventListener("click", action);
  byId("conversation").append(element);
  return element;
}

/** Empties the answer of a turn, whose text `appendText` then extends. */
export function startAnswer(element) {
  part(element, "answer").replaceChildren(new Text());
  for (const name of ["error", "meta", "code"]) part(element, name).hidden = true;
  element.classList.add("running");
  follows = true;
}

export function appendText(element, text) {
  part(element, "answer").firstChild.appendData(text);
}

/** Shows what is known about a finished answer: model, step, tokens, speed, finish reason, seed; or the error. */
export function finishAnswer(element, turn) {
  element.classList.remove("running");
  part(element, "meta").replaceChildren(...metadata(turn).map(listItem));
  part(element, "meta").hidden = Boolean(turn.error);
  part(element, "code").hidden = false;
  part(element, "regenerate").textContent = turn.error ? "Try again" : "Regenerate";
  part(element, "error").hidden = !turn.error;
  if (!turn.error) return;
  part(element, "error-message").textContent = turn.error.message;
  part(element, "left-out").hidden = turn.answer !== "";
  part(element, "request-id").textContent = turn.error.requestId ? `Request ${turn.error.requestId}` : "";
}

function listItem(text) {
  const item = document.createElement("li");
  item.textContent = text;
  item.classList.toggle("cut", text === FINISHES.length);
  return item;
}

function metadata({ model, step, usage, finish, body, times }) {
  const items = [step === null ? model : `${model}, step ${step.toLocaleString("en")}`];
  const tokens = usage?.completion_tokens;
  if (tokens !== undefined) items.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  if (tokens && times.last) items.push(speed(tokens, times));
  if (times.first) items.push(`first after ${((times.first - times.start) / 1000).toFixed(2)} s`);
  items.push(FINISHES[finish] ?? `finish reason: ${finish || "unknown"}`);
  if (body.seed !== undefined) items.push(`seed ${body.seed}`);
  return items;
}

/** Tokens per second after the first token, or of the whole request if the answer came at once. */
function speed(tokens, { start, first, last }) {
  const isSpread = last - first >= MIN_SPAN;
  const rate = isSpread ? (tokens - 1) / (last - first) : tokens / (last - start);
  return `${(1000 * rate).toFixed(1)} tokens/s${isSpread ? "" : " (prompt included)"}`;
}

/** Marks the last turn, which alone can be regenerated, and the turns that an edit will drop. */
export function markTurns(turns, editing) {
  turns.forEach(({ element }, index) => {
    const isLast = index === turns.length - 1;
    part(element, "regenerate").hidden = !isLast;
    element.classList.toggle("dropped", editing !== null && index >= editing);
  });
}

/** Keeps the end of the conversation in view while it grows, unless the user has scrolled up. */
export function followEnd() {
  const root = document.scrollingElement;
  document.addEventListener("scroll", () => {
    if (root.scrollHeight - root.scrollTop - root.clientHeight < 80) follows = true;
    else if (root.scrollTop < lastTop) follows = false;
    lastTop = root.scrollTop;
  });
  // The composer counts too: it covers the end of the page.
  const observer = new ResizeObserver(() => {
    if (follows && byId("conversation").hasChildNodes()) root.scrollTop = root.scrollHeight;
  });
  observer.observe(byId("conversation"));
  observer.observe(byId("composer"));
}

/** A line above the question field, for what the page itself refuses; screen readers announce it. */
export function showNotice(text) {
  byId("notice").textContent = text;
}

/** A short message that only screen readers get. */
export function announce(text) {
  byId("status").textContent = text;
}

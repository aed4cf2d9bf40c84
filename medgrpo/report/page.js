// The browser of examples. All that comes from predictions is set as text, never as markup.
"use strict";

const PER_PAGE = 20;
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters");
const list = document.getElementById("examples");
const count = document.getElementById("count");
const names = data.runs.map((run) => run.name);
const FIELDS = ["run", "verdict", "modality", "task", "dataset", "change", "from", "to", "q"];
let page = 1;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function fill(name, values) {
  const field = form.elements[name];
  values.forEach((value) => field.append(new Option(value || "unknown", value || "unknown")));
  field.closest("label").hidden = values.length < 2;
}

function different(name) {
  return [...new Set(data.examples.map((example) => example[name]))].sort();
}

// What is in the address after "#" names the filters, so that a view can be kept or sent.
function show(wanted) {
  form.reset();
  form.elements.to.value = names[names.length > 1 ? 1 : 0] || "";
  for (const name of FIELDS) {
    const field = form.elements[name];
    const value = wanted.get(name);
    if (value !== null && (name === "q" || [...field.options].some((option) => option.value === value))) {
      field.value = value;
    }
  }
  page = Math.max(1, parseInt(wanted.get("page"), 10) || 1);
}

function writeAddress() {
  const parts = new URLSearchParams();
  for (const name of FIELDS) {
    const pair = name === "from" || name === "to";
    const value = form.elements[name].value;
    if (value && (!pair || form.elements.change.value)) parts.set(name, value);
  }
  if (page > 1) parts.set("page", page);
  const filters = parts.toString();
  history.replaceState(null, "", location.pathname + location.search + (filters ? "#" + filters : ""));
}

function wanted() {
  return Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value]));
}

function runsOf(filters) {
  if (filters.run) return [names.indexOf(filters.run)];
  if (filters.change) return [names.indexOf(filters.from), names.indexOf(filters.to)];
  return names.map((_, index) => index);
}

function changed(example, filters) {
  const before = example.answers[names.indexOf(filters.from)];
  const after = example.answers[names.indexOf(filters.to)];
  if (!before || !after) return false;
  if (filters.change === "gained") return after.right > before.right;
  if (filters.change === "lost") return after.right < before.right;
  return (after.read === before.read) === (filters.change === "same");
}

const haystacks = new Map();
function haystack(example) {
  if (!haystacks.has(example)) {
    const said = example.answers.flatMap((answer) => (answer ? answer.samples.map((sample) => sample.text) : []));
    haystacks.set(example, [example.id, example.question, ...example.options, example.gold, ...said]
      .join("\n").toLowerCase());
  }
  return haystacks.get(example);
}

function matches(example, filters) {
  const answers = runsOf(filters).map((run) => example.answers[run]).filter(Boolean);
  return answers.length > 0
    && ["modality", "task", "dataset"].every((name) => !filters[name] || (example[name] || "unknown") === filters[name])
    && (!filters.verdict || answers.some((answer) => answer.verdicts.includes(filters.verdict)))
    && (!filters.change || changed(example, filters))
    && (!filters.q || haystack(example).includes(filters.q.toLowerCase()));
}

function picture(image, id) {
  const figure = make("figure");
  if (image.index === undefined) {
    figure.append(make("p", "missing", "No picture: " + image.why));
  } else {
    const shown = make("img");
    shown.src = data.images[image.index];
    shown.alt = "Image " + image.path + " of question " + id;
    figure.append(shown);
  }
  figure.append(make("figcaption", "", image.path));
  return figure;
}

function readable(example, answer) {
  if (answer === null) return "no answer";
  const option = example.options[answer.charCodeAt(0) - 65];
  return option !== undefined && answer.length === 1 ? answer + ") " + option : answer;
}

function pill(verdict) {
  return make("span", "verdict " + verdict, verdict);
}

function asked(example) {
  const element = make("div", "asked");
  if (example.images.length) {
    const images = make("div", "images");
    images.append(...example.images.map((image) => picture(image, example.id)));
    if (example.more_images) images.append(make("p", "note", "and " + example.more_images + " more images"));
    element.append(images);
  }
  const words = make("div", "words");
  const question = make("p", "question", example.question || "(question not in the file)");
  question.dir = "auto";
  words.append(question);
  if (example.options.length) {
    const options = make("ol", "options");
    example.options.forEach((option, index) => {
      const gold = String.fromCharCode(65 + index) === example.gold;
      const item = make("li", gold ? "gold" : "", option);
      if (gold) item.append(" ", make("strong", "", "(gold)"));
      options.append(item);
    });
    words.append(options);
  } else {
    const gold = make("p", "gold", example.gold + " ");
    gold.append(make("strong", "", "(gold)"));
    words.append(gold);
  }
  element.append(words);
  return element;
}

function said(example, run) {
  const answer = example.answers[run];
  const section = make("section");
  section.append(make("h4", "", names[run]));
  if (answer.note) section.append(make("p", "note", answer.note));
  for (const sample of answer.samples) {
    const line = make("p", "read");
    line.append(pill(sample.verdict), ...(sample.truncated ? [" ", pill("truncated")] : []));
    line.append(" ", make("bdi", "", readable(example, sample.read)));
    const text = make("pre", "said", sample.text || "(empty)");
    text.dir = "auto";
    text.tabIndex = 0;
    text.setAttribute("aria-label", "Completion of " + names[run]);
    section.append(line, text);
  }
  for (const view of answer.views) {
    const line = make("p", "read note", view.name + ": ");
    line.append(pill(view.verdict), " ", make("bdi", "", view.read === null ? "no answer" : view.read));
    section.append(line);
  }
  return section;
}

function card(example, filters) {
  const article = make("article");
  const title = make("h3", "", example.id);
  const about = [example.modality, example.task, example.dataset,
    example.seen ? "image seen in training" : ""].filter(Boolean).join(" · ");
  const answers = make("div", "answers");
  const runs = runsOf(filters).filter((run, place, all) => example.answers[run] && all.indexOf(run) === place);
  answers.append(...runs.map((run) => said(example, run)));
  article.append(title, make("p", "note", about), asked(example), answers);
  return article;
}

function draw() {
  const filters = wanted();
  const found = data.examples.filter((example) => matches(example, filters));
  const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  page = Math.min(page, pages);
  const start = (page - 1) * PER_PAGE;
  const end = Math.min(start + PER_PAGE, found.length);
  const range = found.length ? ", showing " + (start + 1) + " to " + end : "";
  count.textContent = found.length + " of " + data.examples.length + " examples" + range;
  list.replaceChildren(...found.slice(start, end).map((example) => card(example, filters)));
  list.dataset.count = found.length;
  document.querySelectorAll("[data-step]").forEach((button) => {
    const target = page + Number(button.dataset.step);
    button.disabled = target < 1 || target > pages;
  });
  document.querySelectorAll(".page").forEach((place) => { place.textContent = "Page " + page + " of " + pages; });
}

function turn(step) {
  const before = page;
  page = Math.max(1, page + step);
  draw();
  if (page === before) return;
  writeAddress();
  count.focus({ preventScroll: true });
  count.scrollIntoView();
}

function filter() {
  page = 1;
  draw();
  writeAddress();
}

fill("run", names);
names.forEach((name) => ["from", "to"].forEach((field) => form.elements[field].append(new Option(name, name))));
document.getElementById("pair").hidden = names.length < 2;
["modality", "task", "dataset"].forEach((name) => fill(name, different(name)));
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", filter);
document.getElementById("clear").addEventListener("click", () => { show(new URLSearchParams()); filter(); });
document.querySelectorAll("[data-step]").forEach((button) => {
  button.addEventListener("click", () => turn(Number(button.dataset.step)));
});
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const busy = event.altKey || event.ctrlKey || event.metaKey || event.shiftKey
    || event.target.closest("input, select, textarea, pre, .scroll");
  if (step && !busy) turn(step);
});
function readAddress() {
  show(new URLSearchParams(location.hash.slice(1)));
  draw();
}
window.addEventListener("hashchange", readAddress);
readAddress();

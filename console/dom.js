"use strict";

// Building blocks of all screens: elements, forms, tables, dialogs, times.

const part = id => document.getElementById(id);

// el makes an element. Attributes that begin with "on" are listeners; undefined, null and
// false leave an attribute out. Text always becomes text, never markup.
function el(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) e.addEventListener(name.slice(2), value);
    else e.setAttribute(name, value === true ? "" : value);
  }
  e.append(...children.flat(2).filter(child => child !== undefined && child !== null && child !== false));
  return e;
}

// svg makes an element of a drawing.
function svg(tag, attributes, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes ?? {})) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

// named isolates a text that a person chose, so that its direction changes nothing around it. A
// text that shows nothing is replaced.
const named = (text, ifEmpty = "no name") => /[^\s\p{C}]/u.test(text ?? "") ? el("bdi", {}, text) : el("span", { class: "muted" }, ifEmpty);

const button = (label, onclick, kind) => el("button", { type: "button", class: kind, onclick }, label);
const link = (label, href, kind) => el("a", { href, class: kind }, label);
const badge = (text, kind) => el("span", { class: "badge " + (kind ?? "") }, text);
const muted = (...text) => el("p", { class: "muted" }, ...text);
const card = (title, ...children) => el("section", { class: "card", "aria-label": title }, el("h2", { tabindex: -1 }, title), ...children);
// route returns the address of a screen, with the values that are not empty.
function route(key, values) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
  return "#/" + key + (query.size ? "?" + query : "");
}

const plural = (n, noun) => `${n.toLocaleString()} ${noun}${n === 1 ? "" : "s"}`;

const shortTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const clockTime = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "medium" });
const fullTime = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

// when shows a time of the API in the reader's zone.
function when(text, ifNone = "never", format = shortTime) {
  if (!text) return el("span", { class: "muted" }, ifNone);
  const at = new Date(text);
  return el("time", { datetime: text, title: fullTime.format(at) }, format.format(at));
}

// browserOf returns a short name of a User-Agent, or "" if it knows none.
function browserOf(agent) {
  const find = list => list.find(([pattern]) => pattern.test(agent))?.[1];
  const program = find([[/Edg\//, "Edge"], [/OPR\//, "Opera"], [/Firefox\//, "Firefox"], [/Chrom(e|ium)\//, "Chrome"],
    [/Safari\//, "Safari"], [/^curl\//, "curl"], [/^python/i, "Python"], [/^Go-http/, "Go"]]);
  const system = find([[/Android/, "Android"], [/iPhone|iPad/, "iOS"], [/Windows/, "Windows"], [/Mac OS/, "macOS"], [/Linux|X11/, "Linux"]]);
  return [program, system].filter(Boolean).join(" on ");
}

// say shows what has happened, for a few seconds. It waits for a dialog that is about to close: a
// screen reader does not read a text that only moves.
let saying;
function say(text) {
  clearTimeout(saying);
  part("toast").textContent = "";
  saying = setTimeout(() => {
    part("toast").textContent = text;
    saying = setTimeout(() => { part("toast").textContent = ""; }, 8000);
  }, 100);
}

// placeNotes moves the live messages into the open dialog, if there is one: the rest of the page is
// inert then, so that a screen reader does not read it.
function placeNotes() {
  ([...document.querySelectorAll("dialog:modal")].at(-1) ?? document.body).append(part("lost"), part("toast"));
}

let lastID = 0;

// field makes a labelled input. options: value, type, hint, choices [[value, label]…], and
// attributes of the input.
function field(id, label, options = {}) {
  const { value, hint, choices, type = "text", ...attributes } = options;
  const key = attributes.id ?? `f${++lastID}-${id}`;
  const about = `${key}-about`;
  let input;
  if (choices) {
    input = el("select", { ...attributes, id: key, "aria-describedby": about },
      choices.map(([v, text]) => el("option", { value: v, selected: v === value }, text)));
  } else {
    input = el("input", { autocapitalize: "none", spellcheck: "false", autocomplete: "off", ...attributes, id: key, type, value, "aria-describedby": about });
  }
  const note = el("span", { class: "hint", id: about }, hint);
  let shown;
  if (type === "password") {
    const box = el("input", { type: "checkbox", onchange: () => { input.type = box.checked ? "text" : "password"; } });
    shown = el("label", { class: "inline" }, box, "Show the password");
  }
  const box = type === "checkbox"
    ? el("div", { class: "field" }, el("label", { class: "inline", for: key }, input, label), note)
    : el("div", { class: "field" }, el("label", { for: key }, label), input, note, shown);
  return {
    id, box, input,
    get value() { return type === "checkbox" ? input.checked : input.value; },
    // fail says what is wrong with the value; "" takes that back.
    fail(text) {
      note.textContent = text || (hint ?? "");
      note.classList.toggle("wrong", !!text);
      if (text) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    },
  };
}

// form makes a form. act gets the values by the fields' ids; its error is shown in place, next
// to the field that it names. options: id, label, kind of the button, cancel (a
// function), user (whose password it asks for).
function form(fields, label, act, options = {}) {
  const message = el("p", { class: "wrong", role: "alert" });
  const submit = el("button", { type: "submit", class: options.kind ?? "primary" }, label);
  let busy = false;
  const f = el("form", {
    id: options.id, novalidate: true, "aria-label": options.label,
    onsubmit: async event => {
      event.preventDefault();
      if (busy) return;
      const values = {};
      for (const x of fields) {
        x.fail("");
        values[x.id] = x.value;
      }
      busy = true;
      message.textContent = "";
      submit.setAttribute("aria-disabled", "true");
      const slow = setTimeout(() => { submit.textContent = "Please wait…"; }, 300);
      try {
        await act(values, { fields, message });
      } catch (err) {
        showError(err, fields, message);
      } finally {
        clearTimeout(slow);
        busy = false;
        submit.textContent = label;
        submit.removeAttribute("aria-disabled");
      }
    },
  }, options.user && el("input", { type: "text", autocomplete: "username", value: options.user, hidden: true }), // for password managers
  fields.map(x => x.box), message,
  el("div", { class: "buttons" }, submit, options.cancel && button("Cancel", options.cancel)));
  return f;
}

// showError says what is wrong, next to the fields that the error names, and focuses the first
// of them.
function showError(err, fields, message) {
  if (err instanceof Cancelled || err.name === "AbortError") return;
  let text = explain(err), first;
  for (const x of fields) {
    const why = err.fields?.[x.id] ?? (fieldOfCode[err.code] === x.id ? text : err.code === "missing_fields" && !x.value ? "Fill in this field." : "");
    if (!why || x.box.hidden) continue;
    x.fail(why[0].toUpperCase() + why.slice(1));
    first ??= x;
  }
  if (first) {
    first.input.focus();
    if (!Object.keys(err.fields ?? {}).some(id => !fields.some(x => x.id === id))) text = "";
  }
  message.textContent = text;
}

// fieldOfCode names the field that an error is about.
const fieldOfCode = {
  username_taken: "username", email_taken: "email",
  wrong_otp: "otp", otp_used: "otp", recovery_code_required: "otp",
};

// dialog opens a dialog with a title. build gets a function that closes it. It returns the
// element. Escape closes it while it has a form. options: id, close (called if the dialog is closed
// by Escape or a button).
function dialog(title, build, options = {}) {
  const key = `d${++lastID}`;
  const place = document.activeElement.closest("section");
  const onclose = () => {
    placeNotes();
    box.remove();
    options.close?.();
    if (document.activeElement === document.body) (place?.isConnected ? place.querySelector("h2") : part("title")).focus(); // the opener is gone
  };
  const box = el("dialog", { "aria-labelledby": key, id: options.id, onclose });
  const close = () => box.close();
  box.append(el("h2", { id: key }, title), ...[build(close)].flat().filter(Boolean));
  document.body.append(box);
  box.showModal();
  placeNotes();
  (box.querySelector("input, select") ?? [...box.querySelectorAll("button")].at(-1)).focus(); // the last one cancels
  return box;
}

// keepOpen keeps a dialog without a form open on Escape and the like: it shows a secret that is not
// shown again. A browser lets a page cancel only the first of two attempts, but knows closedBy.
function keepOpen(event) {
  const box = document.querySelector("dialog:modal:not(:has(form))");
  if (!box || event.type === "keydown" && event.key !== "Escape") return;
  event.preventDefault();
  box.closedBy = "none";
}
for (const type of ["keydown", "cancel"]) document.addEventListener(type, keepOpen, true);

// actButton is a button that acts without a dialog. done is what to say afterwards. An error is
// shown next to the button.
function actButton(label, act, done, kind) {
  let wrong;
  const b = button(label, async () => {
    if (b.getAttribute("aria-disabled")) return;
    b.setAttribute("aria-disabled", "true");
    wrong?.remove();
    try {
      await act();
      if (done) say(done);
    } catch (err) {
      if (err instanceof Cancelled || err.name === "AbortError") return;
      wrong = el("span", { class: "wrong", role: "alert" }, explain(err));
      b.after(" ", wrong);
    } finally {
      b.removeAttribute("aria-disabled");
    }
  }, kind);
  return b;
}

// ask opens a dialog that asks whether to go on, and then runs act.
function ask(title, text, label, act) {
  dialog(title, close => [
    el("p", {}, text),
    form([], label, async () => { await act(); close(); }, { kind: "danger", cancel: close }),
  ]);
}

// replaceForm replaces the form of a dialog by what it has made.
function replaceForm(box, ...nodes) {
  const parent = box.parentElement;
  box.replaceWith(...nodes);
  parent.querySelector("button").focus();
}

// secret shows a text that must be copied now.
function secret(text, label) {
  const shown = el("code", { class: "secret", tabindex: 0, "aria-label": label }, text);
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(shown);
      copy.textContent = "Press Ctrl+C";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 3000);
  });
  return el("div", { class: "copy" }, shown, copy);
}

// table makes a table that becomes cards on a narrow screen. The roles are explicit, because a
// table that is not displayed as a table loses them.
function table(kind, label, columns) {
  const body = el("tbody", { role: "rowgroup" });
  const box = el("table", { role: "table", "aria-label": label, "data-table": kind },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" },
      columns.map(text => el("th", { role: "columnheader", scope: "col" }, text || el("span", { class: "hidden" }, "Actions"))))),
    body);
  return {
    box, body,
    row: cells => el("tr", { role: "row" },
      cells.map((cell, i) => el("td", { role: "cell", "data-label": columns[i] }, el("div", {}, cell)))),
  };
}

// list shows what an answer holds in a table: rows, or what to do if there are none. nameOf returns
// the name of an item, which a screen reader reads after the text of each button in its row.
function list(kind, label, columns, items, row, nameOf, ifNone) {
  if (items.length === 0) return muted(ifNone);
  const t = table(kind, label, columns);
  for (const item of items) {
    const shown = t.row(row(item));
    for (const b of shown.querySelectorAll("button")) b.setAttribute("aria-label", `${b.textContent}: ${nameOf(item)}`);
    t.body.append(shown);
  }
  return t.box;
}

// section makes a card whose content load fills, now and after each act in it.
function section(title, load) {
  const content = el("div", {}, muted("Loading…"));
  const box = card(title, content);
  const fill = async () => {
    try {
      content.replaceChildren(...[await load(fill)].flat().filter(Boolean));
      nameUsers(content, screenSignal());
    } catch (err) {
      if (err.name === "AbortError") return;
      content.replaceChildren(el("p", { class: "wrong", role: "alert" }, explain(err)), button("Try again", fill));
    } finally {
      if (document.activeElement === document.body) box.querySelector("h2").focus({ preventScroll: true });
    }
  };
  loads.push(fill());
  return box;
}

let loads = []; // of the sections that reveal is about to show

// reveal shows the parts of a screen when all their sections are loaded, so that none of them
// moves another one.
async function reveal(box, ...parts) {
  const waiting = muted("Loading…"), content = el("div", { hidden: true }, ...parts);
  box.append(waiting, content);
  await Promise.all(loads.splice(0));
  waiting.remove();
  content.hidden = false;
}

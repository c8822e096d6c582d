"use strict";
// The address says what is looked for: ?text=&without=&like=&page=. An uploaded picture is only in
// this page's memory; its number is in the history's state.
const PAGE = 24;
const $ = (id) => document.getElementById(id);
const uploads = [];
let total = 0;
let asked = 0; // number of the newest request: an answer to an older one is dropped

const plural = (n) => `${n.toLocaleString("en")} ${n === 1 ? "picture" : "pictures"}`;

function wanted() {
  const address = new URLSearchParams(location.search);
  const number = (name) => Math.max(0, parseInt(address.get(name), 10) || 0);
  return {
    text: address.get("text") || "",
    without: address.get("without") || "",
    like: number("like"),
    name: address.get("name") || "",
    page: Math.max(1, number("page")),
    upload: history.state && history.state.upload !== undefined ? history.state.upload : null,
    uploaded: address.get("uploaded") || "",
  };
}

// Goes to another query; `change` holds what is not as it is now. Each but a new page begins at 1.
function go(change) {
  const isInGrid = hits().includes(document.activeElement);
  const next = { ...wanted(), page: 1, ...change };
  if (next.upload !== null && (!uploads[next.upload] || uploads[next.upload].isBad)) next.upload = null;
  const address = new URLSearchParams();
  if (next.text) address.set("text", next.text);
  if (next.without) address.set("without", next.without);
  if (next.like) { address.set("like", next.like); address.set("name", next.name); }
  if (next.upload !== null) address.set("uploaded", uploads[next.upload].name || "a picture");
  if (next.page > 1) address.set("page", next.page);
  const query = address.toString();
  history.pushState(next.upload === null ? {} : { upload: next.upload }, "", query ? `?${query}` : "/");
  show(isInGrid);
  window.scrollTo(0, 0);
}

function request(query) {
  const values = { text: query.text, without: query.without, offset: (query.page - 1) * PAGE, limit: PAGE };
  if (query.like) values.like = query.like;
  if (query.upload !== null) {
    const form = new FormData();
    for (const [name, value] of Object.entries(values)) form.set(name, value);
    form.set("image", uploads[query.upload].file, "picture");
    return fetch("/api/search", { method: "POST", body: form });
  }
  const path = query.text || query.like ? "/api/search" : "/api/pictures";
  return fetch(`${path}?${new URLSearchParams(values)}`);
}

// Shows what the address says; `isInGrid`: the focus was among the results, and stays there.
async function show(isInGrid) {
  const query = wanted();
  const mine = ++asked;
  $("text").value = query.text;
  $("without").value = query.without;
  fill(query);
  if (query.uploaded && (query.upload === null || !uploads[query.upload])) {
    notice("This picture is no longer here", "Choose it again: a page that was loaded anew has lost it.");
    return;
  }
  $("grid").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => $("grid").classList.add("busy"), 150);
  try {
    const answer = await request(query);
    const body = await answer.json();
    if (mine !== asked) return;
    if (answer.status === 422 && query.upload !== null) uploads[query.upload].isBad = true;
    if (!answer.ok) wrong(body.detail);
    else results(query, body);
  } catch {
    if (mine === asked) wrong("The server does not answer.");
  } finally {
    clearTimeout(slow);
    if (mine === asked) {
      $("grid").setAttribute("aria-busy", "false");
      $("grid").classList.remove("busy");
      if (isInGrid) focusHit(0);
    }
  }
}

// Shows in the form what is looked for.
function fill(query) {
  const upload = query.upload === null ? null : uploads[query.upload];
  $("chip").hidden = !query.like && !upload;
  if (!$("chip").hidden) {
    const address = upload ? upload.address : `/thumbnails/${query.like}`;
    if ($("chip-picture").getAttribute("src") !== address) $("chip-picture").src = address;
    $("chip-name").textContent = upload ? upload.name : base(query.name);
  }
  $("text").placeholder = $("chip").hidden ? (total ? `Search ${plural(total)}` : "Search pictures") : "and shows …";
  const words = [query.text, query.like ? `like ${base(query.name)}` : "", upload ? "like a picture of yours" : ""];
  document.title = words.filter(Boolean).join(" · ") || "Pictures";
}

function results(query, found) {
  total = found.total;
  const isSearch = query.text || query.like || query.upload !== null;
  fill(query);
  if (!total) {
    notice("This index is empty", "Add pictures with vlrep index, and start the server again.");
    return;
  }
  if (!found.results.length) {
    notice("Nothing here", `There are ${plural(total)}; this page lies behind the last.`, ["To the first page", () => go({})]);
    return;
  }
  $("notice").hidden = true;
  const first = found.offset + 1;
  const last = found.offset + found.results.length;
  const range = `${first.toLocaleString("en")}–${last.toLocaleString("en")}`;
  $("status").textContent = isSearch ? `${range} of ${plural(total)}, nearest first` : `All pictures: ${range} of ${total.toLocaleString("en")}`;
  const best = Math.max(...found.results.map((hit) => hit.score || 0), 1e-9);
  $("grid").replaceChildren(...found.results.map((hit, i) => card(hit, best, i)));
  $("pager").hidden = found.reachable <= PAGE;
  $("previous").disabled = query.page <= 1;
  $("next").disabled = last >= found.reachable;
  $("where").textContent = `Page ${query.page.toLocaleString("en")} of ${Math.ceil(found.reachable / PAGE).toLocaleString("en")}`;
}

function card(hit, best, i) {
  const figure = make("figure", "hit");
  const button = make("button");
  button.type = "button";
  button.tabIndex = i ? -1 : 0;
  button.dataset.id = hit.id;
  button.title = `${hit.name}\n${hit.width} × ${hit.height}`;
  button.setAttribute("aria-label", `More like ${hit.name}`);
  button.addEventListener("click", () => go({ like: hit.id, name: hit.name, text: "", without: "", upload: null }));
  button.addEventListener("focus", () => roam(button));
  const frame = make("span", "frame");
  const picture = make("img");
  picture.alt = "";
  picture.loading = "lazy";
  picture.decoding = "async";
  picture.src = hit.thumbnail;
  picture.addEventListener("error", () => frame.classList.add("absent"));
  frame.append(picture);
  const name = make("span", "name");
  name.dir = "auto";
  name.textContent = base(hit.name);
  button.append(frame, name);
  if (hit.score !== null) {
    const score = make("span", "score");
    const bar = make("i");
    bar.style.setProperty("--share", `${Math.max(0, Math.min(1, hit.score / best)) * 100}%`);
    score.append(hit.score.toFixed(3), bar);
    button.append(score);
  }
  const open = make("a");
  open.href = hit.original;
  open.target = "_blank";
  open.rel = "noopener";
  open.tabIndex = -1;
  open.title = "Open the picture";
  open.setAttribute("aria-label", `Open ${hit.name}`);
  open.innerHTML = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M14 4h6v6M20 4 11 13M18 14v6H4V6h6"/></svg>';
  figure.append(button, open);
  return figure;
}

function notice(title, text, action, isWrong) {
  $("grid").replaceChildren();
  $("pager").hidden = true;
  $("status").textContent = "";
  const strong = make("strong");
  strong.textContent = title;
  $("notice").replaceChildren(strong, text);
  if (action) {
    const button = make("button");
    button.type = "button";
    button.textContent = action[0];
    button.addEventListener("click", action[1]);
    $("notice").append(make("br"), button);
  }
  $("notice").classList.toggle("wrong", Boolean(isWrong));
  $("notice").hidden = false;
}

const wrong = (detail) => notice("That did not work", detail, ["Try again", () => show()], true);

function make(tag, css) {
  const element = document.createElement(tag);
  if (css) element.className = css;
  return element;
}

const base = (name) => name.slice(name.lastIndexOf("/") + 1);
const hits = () => [...document.querySelectorAll(".hit > button")];

// One result at a time is reached by Tab: the one that had the focus last.
function roam(to) {
  for (const button of hits()) button.tabIndex = button === to ? 0 : -1;
}

function focusHit(i) {
  const button = hits()[i];
  if (button) button.focus();
}

// The result that an arrow leads to; -1 for the search field, null for none.
function beside(from, key) {
  const all = hits();
  const columns = all.filter((button) => button.parentNode.offsetTop === all[0].parentNode.offsetTop).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const to = from + step;
  if (key === "ArrowUp" && to < 0) return -1;
  if (key === "ArrowDown" && to >= all.length) return Math.floor(from / columns) < Math.floor((all.length - 1) / columns) ? all.length - 1 : null;
  return to >= 0 && to < all.length ? to : null;
}

function take(file) {
  if (!file) return;
  uploads.push({ file, name: file.name, address: URL.createObjectURL(file) });
  go({ upload: uploads.length - 1, like: 0, name: "", text: "", without: "" });
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  go({ text: $("text").value.trim(), without: $("without").value.trim() });
});
$("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
$("chip-off").addEventListener("click", () => { go({ like: 0, name: "", upload: null }); $("text").focus(); });
$("chip-picture").addEventListener("error", () => { $("chip-picture").hidden = true; });
$("chip-picture").addEventListener("load", () => { $("chip-picture").hidden = false; });
$("previous").addEventListener("click", () => go({ page: wanted().page - 1 }));
$("next").addEventListener("click", () => go({ page: wanted().page + 1 }));
window.addEventListener("popstate", () => show());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const on = document.activeElement;
  if (on && on.matches("input")) {
    if (event.key === "Escape") on.blur();
    if (event.key === "ArrowDown" && hits().length) { event.preventDefault(); focusHit(0); }
    return;
  }
  const at = hits().indexOf(on);
  if (event.key === "/") {
    event.preventDefault();
    $("text").focus();
    $("text").select();
  } else if (event.key.startsWith("Arrow") && hits().length) {
    event.preventDefault();
    const to = at < 0 ? 0 : beside(at, event.key);
    if (to === -1) { $("text").focus(); $("text").select(); } else if (to !== null) focusHit(to);
  } else if (event.key === "o" && at >= 0) {
    on.parentNode.querySelector("a").click();
  } else if (event.key === "n" && !$("pager").hidden && !$("next").disabled) {
    $("next").click();
  } else if (event.key === "p" && !$("pager").hidden && !$("previous").disabled) {
    $("previous").click();
  }
});

let inside = 0; // elements that a dragged file is over: leaving one may be entering another
const hasFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", (event) => { if (hasFile(event)) { inside++; $("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (hasFile(event) && --inside <= 0) $("drop").hidden = true; });
addEventListener("dragover", (event) => { if (hasFile(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  inside = 0;
  $("drop").hidden = true;
  if (hasFile(event)) { event.preventDefault(); take(event.dataTransfer.files[0]); }
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) { event.preventDefault(); take(file); }
});

show();

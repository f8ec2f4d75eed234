// The page works without this script: it shows changes without a reload, as they are made, and suggests values.
"use strict";

let newest = 0, shown = location.search;

async function show(url, keepsLink) {
  const number = ++newest, focus = placeOfFocus();
  document.getElementById("page").setAttribute("aria-busy", "true");
  try {
    const reply = await fetch(url, { headers: { Accept: "text/html" } });
    const text = await reply.text();
    if (number !== newest) return;
    const next = new DOMParser().parseFromString(text, "text/html");
    if (!next.getElementById("page")) throw new Error(text.slice(0, 300));
    document.title = next.title;
    for (const name of ["header", "#page"]) document.querySelector(name).replaceWith(next.querySelector(name));
    if (!keepsLink) history.pushState(null, "", reply.url);
    shown = location.search;
    restore(focus);
    tell(document.querySelector("main [role=alert]") || document.querySelector("main h2"));
  } catch (error) {
    document.getElementById("page").removeAttribute("aria-busy");
    const alert = document.createElement("p");
    alert.className = "alert";
    alert.setAttribute("role", "alert");
    alert.textContent = `Problem: the page cannot be reached (${error.message}). Does re4 inspect still run?`;
    document.querySelector("main").prepend(alert);
  }
}

function tell(element) {
  document.getElementById("status").textContent = element ? element.textContent : "";
}

function placeOfFocus() {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  return { id: at.id, name: at.name, value: at.value, open: [...document.querySelectorAll("details")].map(e => e.open) };
}

function restore(focus) {
  if (!focus) return;
  const all = [...document.querySelectorAll("details")];
  if (all.length === focus.open.length) all.forEach((element, place) => { element.open = focus.open[place]; });
  const same = focus.id ? document.getElementById(focus.id)
    : document.querySelector(`button[name="${CSS.escape(focus.name || "")}"]`);
  if (same) same.focus({ preventScroll: true });
}

function linkOf(form, button) {
  const pairs = [...new FormData(form, button)].filter(([, value]) => value !== "");
  return `/?${new URLSearchParams(pairs)}`;
}

document.addEventListener("submit", event => {
  event.preventDefault();
  show(linkOf(event.target, event.submitter));
});

document.addEventListener("change", event => {
  const typed = ["q", "q-name", "q-value", "filter-name", "filter-kind", "filter-value", "paste"];
  if (event.target.form && !typed.includes(event.target.id)) event.target.form.requestSubmit();
});

document.addEventListener("click", event => {
  const link = event.target.closest("#page a[href^='/']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(link.href);
});

document.addEventListener("input", event => suggest(event.target));
document.addEventListener("focusin", event => suggest(event.target));

async function suggest(input) {
  if (!input.dataset || !input.dataset.valuesOf) return;
  const name = document.getElementById(input.dataset.valuesOf).value;
  if (!name) return;
  const like = input.value.split(",").pop().trim();
  const source = document.getElementById("source").value;
  const reply = await fetch(`/values?${new URLSearchParams({ source, name, like })}`);
  if (!reply.ok) return;
  const before = input.value.slice(0, input.value.length - like.length);
  const options = Object.entries((await reply.json()).values).map(([value, number]) => {
    const option = document.createElement("option");
    option.value = before + value;
    option.label = `${value} (${number} items)`;
    return option;
  });
  input.list.replaceChildren(...options);
}

addEventListener("popstate", () => {
  if (location.search !== shown) show(location.href, true);  // not for a link within the page
});

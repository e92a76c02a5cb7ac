// An open page changes without moving its reader; htmx asks for the changes and puts them in place.
// Nothing is asked while the page is hidden, or while text in the part that would change is selected.
// No page is loaded anew under a form that is being filled in: it says that it is out of date. What is focused, opened or scrolled
// in a part stays so, and so does the row at the top of the window, unless that is the page's start.
// From a question without a good answer until the same one gets a good one, the page says that it may be out of date.
"use strict";
(() => {
  const nameOf = (each) => each.getAttribute("aria-label") || each.id || each.textContent;
  const all = (part, selector) => [...part.querySelectorAll(selector)];

  // New rows come first, so that the others keep their place counted from the end.
  const describe = (part, each) => {
    const name = nameOf(each), selector = each.tagName;
    const alike = all(part, selector).filter((other) => nameOf(other) === name);
    return { name, selector, place: alike.indexOf(each) - alike.length };
  };
  const find = (part, { name, selector, place }) =>
    all(part, selector).filter((other) => nameOf(other) === name).at(place);

  const isSelected = (part) => {
    const selection = getSelection();
    return !selection.isCollapsed && selection.getRangeAt(0).intersectsNode(part);
  };
  const isChanged = (field) => {
    if (field.matches("select")) {
      const first = [...field.options].findIndex((option) => option.defaultSelected);
      return field.selectedIndex !== Math.max(first, 0);
    }
    return field.value !== field.defaultValue || Boolean(field.checked) !== Boolean(field.defaultChecked);
  };
  const isFilledIn = () =>
    all(document, "main form :is(input:not([type=hidden]), select, textarea)").some(
      (field) => field === document.activeElement || isChanged(field),
    );

  // A page that is opened in the background asks once for the parts that it comes without.
  const begun = new WeakSet();
  document.addEventListener("htmx:beforeRequest", (event) => {
    const part = event.detail.elt, isFirst = part.getAttribute("hx-trigger").startsWith("load") && !begun.has(part);
    begun.add(part);
    if (!isFirst && (document.hidden || isSelected(part))) event.preventDefault();
  });

  document.addEventListener("htmx:beforeOnLoad", (event) => {
    const isHeld = event.detail.xhr.getResponseHeader("HX-Refresh") && isFilledIn();
    if (isHeld) event.preventDefault();
    document.getElementById("held").hidden = !isHeld;
  });

  // Each part by itself: a good answer to one says nothing of the others. A part without a good answer stays the same element.
  const opened = new Date(), answered = new Map(), waiting = new Map();
  document.addEventListener("htmx:afterRequest", ({ detail: { xhr, requestConfig } }) => {
    const part = requestConfig.elt, path = requestConfig.path.split("?")[0];
    if (xhr.status >= 200 && xhr.status < 400) {
      answered.set(path, new Date());
      waiting.delete(part);
    } else waiting.set(part, answered.get(path) || opened);
    for (const each of waiting.keys()) if (!each.isConnected) waiting.delete(each);
    const note = document.getElementById("stale"), last = Math.min(...waiting.values());
    note.hidden = waiting.size === 0;
    if (!note.hidden) note.querySelector("time").textContent = `${new Date(last).toISOString().slice(0, 19).replace("T", " ")} UTC`;
  });

  let kept = null;
  document.addEventListener("htmx:beforeSwap", ({ detail: { target } }) => {
    const links = all(target, "a[href]");
    const seen = links.find((each) => each.getBoundingClientRect().top >= 0) || links.at(-1);
    const focused = target.contains(document.activeElement) && document.activeElement;
    kept = {
      scrolled: all(target, ".scroll").map((each) => each.scrollLeft),
      opened: all(target, "details[open]").map((each) => each.textContent),
      focused: focused && describe(target, focused),
      seen: seen && window.scrollY > 0 && describe(target, seen),
      top: seen && seen.getBoundingClientRect().top,
    };
  });

  document.addEventListener("htmx:afterSwap", ({ target: part }) => {
    if (!kept) return;
    const { scrolled, opened, focused, seen, top } = kept;
    kept = null;
    for (const each of all(part, "details")) each.open ||= opened.includes(each.textContent);
    all(part, ".scroll").forEach((each, index) => { each.scrollLeft = scrolled[index] ?? 0; });
    const row = seen && find(part, seen);
    if (row) window.scrollBy(0, row.getBoundingClientRect().top - top);
    const again = focused && find(part, focused);
    if (again) again.focus({ preventScroll: true });
  });
})();

// Narrows the list at the side while one types. The page is whole without it.
const box = document.getElementById("find");
box.hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const item of document.querySelectorAll("nav li")) {
    const text = (item.dataset.find || item.textContent).toLowerCase();
    item.classList.toggle("hidden", !words.every((word) => text.includes(word)));
  }
  for (const group of document.querySelectorAll("nav div")) {
    group.classList.toggle("hidden", !group.querySelector("li:not(.hidden)"));
  }
});

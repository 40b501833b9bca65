"use strict";
(() => {
  const slider = document.getElementById("heat"), shown = slider.nextElementSibling;
  const apply = () => {
    document.documentElement.style.setProperty("--heat", slider.value);
    shown.textContent = Math.round(100 * slider.value) + "%";
  };
  slider.addEventListener("input", apply);
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT") return;
    const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    if (rel) document.querySelector(`a[rel=${rel}]`)?.click();
  });
  apply();
})();

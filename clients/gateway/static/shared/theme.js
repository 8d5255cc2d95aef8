// Runs before the first paint: the colours that this browser was told to use, else those of the system.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("swarm.theme");
  } catch {
    // storage is forbidden here; the system's colours it is
  }
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
})();

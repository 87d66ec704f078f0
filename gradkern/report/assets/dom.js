// Elements, colours of the theme, and the tip beside the pointer.

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const rgbOf = name => {
  const hex = colour(name);
  return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
};

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// A card's heading with a place for a readout beside it.
function heading(card, title) {
  const readout = element("span", { className: "readout" });
  card.append(element("div", { className: "head" }, element("h2", {}, title), readout));
  return readout;
}

const tip = element("div", { className: "tip", hidden: true });
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const right = event.clientX + 14 + tip.offsetWidth > window.innerWidth;
  tip.style.left = `${Math.max(4, right ? event.clientX - 14 - tip.offsetWidth : event.clientX + 14)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 16, window.innerHeight - tip.offsetHeight - 6))}px`;
}
const hideTip = () => { tip.hidden = true; };

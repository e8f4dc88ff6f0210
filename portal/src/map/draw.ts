/** Draws the map on a canvas: 1,213 nodes are a few milliseconds and one element of the page. */
import type { Kind } from "./kinds";
import { kindOf, letterOf } from "./kinds";
import type { Cell, MapLayout } from "./layout";

export interface Palette {
  label: string;
  onFill: string;
  kinds: Record<Kind, string>;
  fonts: { label: string; letter: string };
}

/** Whether a node stands out; the others fade. */
export type Stands = (cell: Cell) => boolean;

/** The colours as the page's style has them now. */
export function paletteOf(element: HTMLElement): Palette {
  const probe = document.createElement("span");
  probe.hidden = true;
  element.append(probe);
  const colour = (name: string): string => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const palette: Palette = {
    label: colour("--soft"),
    onFill: colour("--map-on-fill"),
    kinds: {
      free: colour("--map-free"),
      used: colour("--map-used"),
      work: colour("--map-work"),
      off: colour("--map-off"),
      trouble: colour("--map-trouble"),
    },
    fonts: { label: "500 11px 'JetBrains Mono Variable', monospace", letter: "'Inter Variable'" },
  };
  probe.remove();
  return palette;
}

export function draw(
  canvas: HTMLCanvasElement,
  layout: MapLayout,
  palette: Palette,
  stands: Stands,
): void {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(layout.width * ratio);
  canvas.height = Math.round(layout.height * ratio);
  canvas.style.width = `${layout.width}px`;
  canvas.style.height = `${layout.height}px`;
  const context = canvas.getContext("2d");
  if (!context) return;
  context.scale(ratio, ratio);
  context.textBaseline = "middle";
  context.font = palette.fonts.label;
  context.fillStyle = palette.label;
  for (const rack of layout.racks) context.fillText(rack.label, rack.x + 1, rack.y + 7, rack.width);
  for (const cell of layout.cells) {
    context.globalAlpha = stands(cell) ? 1 : 0.16;
    drawCell(context, cell, layout.pitch, palette);
  }
}

function drawCell(
  context: CanvasRenderingContext2D,
  cell: Cell,
  pitch: number,
  palette: Palette,
): void {
  const kind = kindOf(cell.node);
  const inset = pitch > 20 ? 2 : 1.5;
  const edge = pitch - 2 * inset;
  const [x, y] = [cell.x + inset, cell.y + inset];
  shape(context, kind, x, y, edge, palette.kinds[kind]);
  const letter = letterOf(cell.node);
  if (letter && pitch >= 12) {
    context.font = `700 ${Math.max(8, Math.round(edge * 0.56))}px ${palette.fonts.letter}`;
    context.textAlign = "center";
    context.fillStyle = kind === "off" ? palette.kinds.off : palette.onFill;
    context.fillText(letter, x + edge / 2, y + edge / 2 + 0.5);
    context.textAlign = "start";
  }
}

/** Free is hollow, in use is full, in work is round, held back is dashed, set aside is a diamond. */
function shape(
  context: CanvasRenderingContext2D,
  kind: Kind,
  x: number,
  y: number,
  edge: number,
  colour: string,
): void {
  const [middleX, middleY, half] = [x + edge / 2, y + edge / 2, edge / 2];
  context.fillStyle = colour;
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.beginPath();
  if (kind === "work") {
    context.arc(middleX, middleY, half, 0, 2 * Math.PI);
    context.fill();
  } else if (kind === "trouble") {
    context.moveTo(middleX, y - 1);
    context.lineTo(x + edge + 1, middleY);
    context.lineTo(middleX, y + edge + 1);
    context.lineTo(x - 1, middleY);
    context.closePath();
    context.fill();
  } else if (kind === "used") {
    context.roundRect(x, y, edge, edge, Math.min(4, edge / 4));
    context.fill();
  } else {
    context.roundRect(x + 0.75, y + 0.75, edge - 1.5, edge - 1.5, Math.min(4, edge / 4));
    if (kind === "off") context.setLineDash([2, 2]);
    context.stroke();
    context.setLineDash([]);
  }
}

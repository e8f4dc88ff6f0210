/** Where racks and their nodes lie on the map. Pure: the same nodes and width give the same places. */
import type { Node } from "../api/client";

export interface Cell {
  node: Node;
  rack: string;
  x: number;
  y: number;
}

export interface RackBox {
  name: string;
  label: string;
  x: number;
  y: number;
  width: number;
}

export interface MapLayout {
  cells: Cell[];
  racks: RackBox[];
  /** Edge of a node's square, with the space around it. */
  pitch: number;
  width: number;
  height: number;
}

/** How many nodes stand in a column: as in a rack where there is room, lower where there is none. */
const TALLS = [8, 4];
const LABEL_HEIGHT = 18;
const GAP = 10;
const ROW_GAP = 14;
const NARROWEST = 26;
const PITCHES = [46, 40, 34, 30, 26, 23, 20, 18, 16, 14, 12];

const natural = new Intl.Collator("en", { numeric: true }).compare;

/** Lay out `nodes` in `width`, as large as `height` allows. */
export function layOut(nodes: readonly Node[], width: number, height: number): MapLayout {
  const racks = [...Map.groupBy(nodes, (node) => node.rack)]
    .map(([name, inside]) => ({ name, nodes: inside.sort((a, b) => natural(a.name, b.name)) }))
    .sort((a, b) => natural(a.name, b.name));
  const prefix = sharedPrefix(racks.map((rack) => rack.name));
  let layout: MapLayout | null = null;
  for (const pitch of PITCHES) {
    for (const tall of TALLS) {
      layout = placed(racks, prefix, width, pitch, tall);
      if (layout.height <= height) return layout;
    }
  }
  return layout ?? { cells: [], racks: [], pitch: 0, width, height: 0 };
}

function placed(
  racks: readonly { name: string; nodes: readonly Node[] }[],
  prefix: number,
  width: number,
  pitch: number,
  tallest: number,
): MapLayout {
  const cells: Cell[] = [];
  const boxes: RackBox[] = [];
  const tall = Math.min(tallest, Math.max(1, ...racks.map((rack) => rack.nodes.length)));
  const lineHeight = LABEL_HEIGHT + tall * pitch + ROW_GAP;
  let x = 0;
  let y = 0;
  for (const { name, nodes } of racks) {
    const columns = Math.ceil(nodes.length / tall);
    const boxWidth = Math.max(columns * pitch, NARROWEST);
    if (x > 0 && x + boxWidth > width) {
      x = 0;
      y += lineHeight;
    }
    boxes.push({ name, label: name.slice(prefix) || name, x, y, width: boxWidth });
    nodes.forEach((node, index) => {
      cells.push({
        node,
        rack: name,
        x: x + Math.floor(index / tall) * pitch,
        y: y + LABEL_HEIGHT + (index % tall) * pitch,
      });
    });
    x += boxWidth + GAP;
  }
  return { cells, racks: boxes, pitch, width, height: y + lineHeight - ROW_GAP };
}

/** How many letters all names begin with, but for digits: `rack-007` is labelled `007`. */
function sharedPrefix(names: readonly string[]): number {
  const first = names[0];
  if (first === undefined || names.length < 2) return 0;
  let length = 0;
  while (length < first.length && names.every((name) => name[length] === first[length])) length += 1;
  while (length > 0 && /[0-9]/.test(first[length - 1] ?? "")) length -= 1;
  return length;
}

/** The cell at a point; null between them. */
export function cellAt(layout: MapLayout, x: number, y: number): Cell | null {
  const { pitch } = layout;
  return (
    layout.cells.find(
      (cell) => x >= cell.x && x < cell.x + pitch && y >= cell.y && y < cell.y + pitch,
    ) ?? null
  );
}

const STEPS: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

/** The cell that a key leads to from `from`; null where the key leads nowhere. */
export function neighbour(layout: MapLayout, from: Cell | null, key: string): Cell | null {
  const { cells } = layout;
  if (key === "Home" || (from === null && key in STEPS)) return cells[0] ?? null;
  if (key === "End") return cells.at(-1) ?? null;
  const step = STEPS[key];
  if (!step || from === null) return null;
  const [right, down] = step;
  let best: Cell | null = null;
  let least = Infinity;
  for (const cell of cells) {
    const along = (cell.x - from.x) * right + (cell.y - from.y) * down;
    if (along <= 0) continue;
    const aside = Math.abs((cell.x - from.x) * down) + Math.abs((cell.y - from.y) * right);
    // Straight on first: what lies aside counts for more than what lies far.
    const distance = along + aside * 4;
    if (distance < least) [best, least] = [cell, distance];
  }
  return best;
}

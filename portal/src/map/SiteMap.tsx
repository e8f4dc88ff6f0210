/** The site as a map of racks. By mouse: point and click. By keyboard: arrows, Home, End, Enter. */
import { useEffect, useLayoutEffect, useMemo, useRef, useState, type KeyboardEvent } from "react";
import type { Node } from "../api/client";
import { count, words } from "../ui/format";
import { onThemeChange } from "../ui/theme";
import { draw, paletteOf, type Palette } from "./draw";
import { KINDS, kindOf, type Kind } from "./kinds";
import { cellAt, layOut, neighbour, type Cell } from "./layout";

interface Props {
  nodes: readonly Node[];
  /** Only nodes of this kind stand out; all where null. */
  kind: Kind | null;
  search: string;
  selected: string | null;
  onSelect: (id: string | null) => void;
}

export function SiteMap({ nodes, kind, search, selected, onSelect }: Props) {
  const frame = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const { width, height } = useRoom(frame);
  const [focusedId, setFocusedId] = useState<string | null>(null);
  const [byKeyboard, setByKeyboard] = useState(false);
  const palette = usePalette(frame);
  const layout = useMemo(() => layOut(nodes, width, height), [nodes, width, height]);
  const focused = layout.cells.find((cell) => cell.node.id === focusedId) ?? null;
  const chosen = layout.cells.find((cell) => cell.node.id === selected) ?? null;

  useLayoutEffect(() => {
    if (!canvas.current || !palette) return;
    const wanted = search.trim().toLowerCase();
    draw(
      canvas.current,
      layout,
      palette,
      ({ node }) => (kind === null || kindOf(node) === kind) && (!wanted || matches(node, wanted)),
    );
  }, [layout, palette, kind, search]);

  function onKeyDown(event: KeyboardEvent): void {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (focused) onSelect(focused.node.id);
      return;
    }
    if (event.key === "Escape") {
      onSelect(null);
      return;
    }
    const next = neighbour(layout, focused, event.key);
    if (!next) return;
    event.preventDefault();
    setByKeyboard(true);
    setFocusedId(next.node.id);
  }

  function pointed(event: { clientX: number; clientY: number }): Cell | null {
    const box = canvas.current?.getBoundingClientRect();
    return box ? cellAt(layout, event.clientX - box.left, event.clientY - box.top) : null;
  }

  return (
    <div className="map-frame" ref={frame}>
      <div
        className="map"
        role="application"
        tabIndex={0}
        aria-label={`Map of ${count(layout.cells.length, "node")} in ${count(layout.racks.length, "rack")}`}
        aria-describedby="map-help"
        data-cells={layout.cells.length}
        onKeyDown={onKeyDown}
        onPointerMove={(event) => {
          setByKeyboard(false);
          setFocusedId(pointed(event)?.node.id ?? null);
        }}
        onPointerLeave={() => setFocusedId(null)}
        onClick={(event) => onSelect(pointed(event)?.node.id ?? null)}
        onBlur={() => setFocusedId(null)}
      >
        <canvas ref={canvas} aria-hidden="true" />
        {chosen && <Ring cell={chosen} pitch={layout.pitch} />}
        {focused && focused !== chosen && <Ring cell={focused} pitch={layout.pitch} />}
        {focused && <Tip cell={focused} pitch={layout.pitch} width={layout.width} />}
      </div>
      <p id="map-help" className="visually-hidden">
        Arrow keys go from node to node, Home and End to the first and last, Enter shows one.
      </p>
      <p className="visually-hidden" role="status">
        {byKeyboard && focused ? spoken(focused.node) : ""}
      </p>
    </div>
  );
}

/** Around a node; apart from the canvas, so that pointing draws nothing anew. */
function Ring({ cell, pitch }: { cell: Cell; pitch: number }) {
  const place = { left: cell.x - 1, top: cell.y - 1, width: pitch + 2, height: pitch + 2 };
  return <div className="map-ring" style={place} />;
}

function Tip({ cell, pitch, width }: { cell: Cell; pitch: number; width: number }) {
  const { node } = cell;
  const right = cell.x > width / 2;
  const place = {
    top: cell.y + pitch + 6,
    ...(right ? { right: width - cell.x - pitch } : { left: cell.x }),
  };
  return (
    <div className="map-tip" style={place} data-node={node.name}>
      <strong>{node.name}</strong>
      <span>
        {words(node.state)}
        {node.cordoned ? ", cordoned" : ""} · {node.node_type}
      </span>
      <span className="soft">rack {node.rack}</span>
      {node.reason && <span className="soft clip">{node.reason}</span>}
    </div>
  );
}

export function matches(node: Node, wanted: string): boolean {
  return [node.name, node.rack, node.node_type, node.state, node.serial, node.vendor].some((text) =>
    text.toLowerCase().includes(wanted),
  );
}

function spoken(node: Node): string {
  const kind = KINDS.find((one) => one.kind === kindOf(node))?.title ?? "";
  return `${node.name}, rack ${node.rack}, ${node.node_type}, ${words(node.state)} (${kind})`;
}

/** The width that the map has, and the height that keeps it on the screen. */
function useRoom(frame: React.RefObject<HTMLDivElement | null>): { width: number; height: number } {
  const [room, setRoom] = useState({ width: 0, height: 0 });
  useLayoutEffect(() => {
    const element = frame.current;
    if (!element) return;
    const measure = () => {
      const width = Math.floor(element.clientWidth);
      const height = Math.max(240, Math.floor(window.innerHeight - 300));
      setRoom((known) =>
        known.width === width && known.height === height ? known : { width, height },
      );
    };
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    addEventListener("resize", measure);
    return () => {
      observer.disconnect();
      removeEventListener("resize", measure);
    };
  }, [frame]);
  return room;
}

function usePalette(frame: React.RefObject<HTMLDivElement | null>): Palette | null {
  const [palette, setPalette] = useState<Palette | null>(null);
  useEffect(() => {
    const read = () => frame.current && setPalette(paletteOf(frame.current));
    read();
    // A canvas knows only fonts that were loaded before.
    void document.fonts.ready.then(read);
    return onThemeChange(() => requestAnimationFrame(read));
  }, [frame]);
  return palette;
}

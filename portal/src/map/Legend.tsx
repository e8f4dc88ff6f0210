/** What the signs of the map mean, how many there are of each, and a filter. */
import { ToggleButton, ToggleButtonGroup } from "react-aria-components";
import type { Node } from "../api/client";
import { KINDS, kindOf, type Kind } from "./kinds";

export function Legend(props: {
  nodes: readonly Node[];
  kind: Kind | null;
  onKind: (kind: Kind | null) => void;
}) {
  const counts = Map.groupBy(props.nodes, kindOf);
  return (
    <ToggleButtonGroup
      className="legend"
      aria-label="Show only"
      selectedKeys={props.kind ? [props.kind] : []}
      onSelectionChange={(keys) => props.onKind(([...keys][0] as Kind | undefined) ?? null)}
    >
      {KINDS.map(({ kind, title, says }) => {
        const number = (counts.get(kind)?.length ?? 0).toLocaleString("en");
        return (
          <ToggleButton
            key={kind}
            id={kind}
            className="legend-item"
            aria-label={`${title} ${number}: ${says}`}
          >
            <Swatch kind={kind} />
            <span>{title}</span>
            <span className="number" data-kind={kind}>
              {number}
            </span>
          </ToggleButton>
        );
      })}
    </ToggleButtonGroup>
  );
}

function Swatch({ kind }: { kind: Kind }) {
  return (
    <svg className={`swatch ${kind}`} viewBox="0 0 16 16" aria-hidden="true">
      {kind === "work" && <circle cx="8" cy="8" r="6.5" />}
      {kind === "trouble" && <path d="M8 1 15 8 8 15 1 8Z" />}
      {(kind === "used" || kind === "free" || kind === "off") && (
        <rect x="2" y="2" width="12" height="12" rx="3" />
      )}
    </svg>
  );
}

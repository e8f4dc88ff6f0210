/** How a node looks on the map. Shape, filling and letter say what the colour says. */
import type { Node } from "../api/client";

export type Kind = "free" | "used" | "work" | "off" | "trouble";

export const KINDS: readonly { kind: Kind; title: string; says: string }[] = [
  { kind: "free", title: "Free", says: "clean and powered off; the next order may get it" },
  { kind: "used", title: "In use", says: "handed over to a tenant" },
  { kind: "work", title: "In work", says: "being enrolled, prepared, installed or cleaned" },
  { kind: "off", title: "Held back", says: "cordoned or in maintenance" },
  { kind: "trouble", title: "Set aside", says: "failed or in quarantine; an operator looks at it" },
];

const BY_STATE: Record<string, Kind> = {
  available: "free",
  active: "used",
  declared: "work",
  enrolling: "work",
  preparing: "work",
  provisioning: "work",
  rescue: "work",
  cleaning: "work",
  maintenance: "off",
  quarantine: "trouble",
  failed: "trouble",
};

const LETTERS: Record<string, string> = {
  declared: "D",
  enrolling: "E",
  preparing: "P",
  provisioning: "I",
  rescue: "R",
  cleaning: "C",
  maintenance: "M",
  quarantine: "Q",
  failed: "F",
};

export function kindOf(node: Node): Kind {
  const kind = BY_STATE[node.state] ?? "trouble";
  return kind === "free" && node.cordoned ? "off" : kind;
}

export function letterOf(node: Node): string {
  return LETTERS[node.state] ?? "";
}

/** What a state means to whoever looks: one of five moods, told by colour and by a sign. */

export type Mood = "good" | "busy" | "bad" | "off" | "held";

const MOODS: Record<string, Mood> = {
  active: "held",
  available: "good",
  ready: "good",
  succeeded: "good",
  done: "good",
  pending: "busy",
  running: "busy",
  creating: "busy",
  resizing: "busy",
  deleting: "busy",
  undoing: "busy",
  preparing: "busy",
  provisioning: "busy",
  cleaning: "busy",
  enrolling: "busy",
  declared: "busy",
  rescue: "busy",
  failed: "bad",
  quarantine: "bad",
  needs_operator: "bad",
  maintenance: "off",
  cancelled: "off",
  deleted: "off",
  planned: "off",
  undone: "off",
};

export function moodOf(state: string): Mood {
  return MOODS[state] ?? "off";
}

export const SIGNS: Record<Mood, string> = {
  good: "✓",
  held: "■",
  busy: "◐",
  bad: "✕",
  off: "–",
};

/** States in which an operation moves no more by itself. */
export const ENDED = new Set(["succeeded", "failed", "cancelled", "needs_operator"]);

/** Whether the platform answers, as the page says it. */
import { useSyncExternalStore } from "react";

export type Connection =
  | { state: "connecting" }
  | { state: "live" }
  | { state: "lost"; since: number };

type Listener = () => void;

let connection: Connection = { state: "connecting" };
const listeners = new Set<Listener>();

export function setConnection(state: Connection["state"]): void {
  if (state === connection.state) return;
  connection = state === "lost" ? { state, since: Date.now() } : { state };
  for (const listener of listeners) listener();
}

function subscribe(listener: Listener): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function useConnection(): Connection {
  return useSyncExternalStore(subscribe, () => connection);
}

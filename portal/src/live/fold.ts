/** Folds events into what the pages show, so that a change is seen without asking. */
import type { QueryClient } from "@tanstack/react-query";
import type { Cluster, Node, Operation } from "../api/client";
import { EventStream, type PlatformEvent } from "./stream";

const TYPES = "operation.,cluster.,node.,allocation.,site.";
/** How long lists that events do not tell whole may stay behind while much happens. */
const BEHIND_MS = 1_200;

/** Follow the platform until the returned function is called. */
export function follow(client: QueryClient): () => void {
  const stale = new Set<string>();
  let due = 0;

  function reread(...keys: string[]): void {
    for (const key of keys) stale.add(key);
    due ||= window.setTimeout(() => {
      due = 0;
      for (const key of stale) void client.invalidateQueries({ queryKey: [key] });
      stale.clear();
    }, BEHIND_MS);
  }

  const stream = new EventStream(TYPES, {
    onHello: (missed) => {
      // Requests that fail while nobody answers wait for their next try: now is better.
      if (missed) void client.invalidateQueries();
      else void client.refetchQueries({ predicate: (query) => query.state.fetchFailureCount > 0 });
    },
    onEvent: (event) => {
      if (event.type === "operation.changed") foldOperation(client, event);
      else if (event.type.startsWith("cluster.")) {
        foldCluster(client, event);
        reread("clusters", "cluster");
      } else if (event.type === "node.state_changed") {
        foldNode(client, event);
        reread("sites");
      } else if (event.type === "allocation.changed") reread("nodes", "cluster", "quote");
      else if (event.type.startsWith("node.")) reread("nodes", "sites");
      else if (event.type.startsWith("site.")) reread("sites", "node-types", "images");
    },
  });
  stream.start();
  return () => {
    clearTimeout(due);
    stream.stop();
  };
}

function foldOperation(client: QueryClient, event: PlatformEvent): void {
  const fresh = event.data as unknown as Operation;
  client.setQueryData<Operation>(["operation", fresh.id], (known) =>
    known && known.version >= fresh.version ? known : fresh,
  );
}

function foldCluster(client: QueryClient, event: PlatformEvent): void {
  const fresh = event.data as unknown as Partial<Cluster> & { id: string; version: number };
  if (event.type !== "cluster.changed") return;
  const folded = (known: Cluster): Cluster =>
    known.id === fresh.id && known.version < fresh.version ? { ...known, ...fresh } : known;
  client.setQueryData<Cluster[]>(["clusters"], (known) => known?.map(folded));
  client.setQueriesData<Cluster>({ queryKey: ["cluster"] }, (known) => known && folded(known));
}

function foldNode(client: QueryClient, event: PlatformEvent): void {
  const { node_id, state, reason, cordoned } = event.data as {
    node_id: string;
    state: string;
    reason: string;
    cordoned: boolean;
  };
  client.setQueryData<Node[]>(["nodes"], (known) =>
    known?.map((node) =>
      node.id === node_id && node.version < event.resource_version
        ? { ...node, state, reason, cordoned, since: event.at, version: event.resource_version }
        : node,
    ),
  );
}

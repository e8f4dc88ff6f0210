/** An order while it is written: what was typed, and what of it can be asked. */
import type { ClusterOrder } from "../api/client";

export interface Draft {
  project: string;
  name: string;
  kind: "bare" | "slurm";
  site: string;
  nodeType: string;
  count: number;
  image: string;
  keys: string[];
  shape: "pack" | "spread";
  same: string;
  waits: boolean;
  ttl: string;
  isProtected: boolean;
}

export const EMPTY: Draft = {
  project: "",
  name: "",
  kind: "bare",
  site: "",
  nodeType: "",
  count: 8,
  image: "default",
  keys: [],
  shape: "pack",
  same: "none",
  waits: false,
  ttl: "none",
  isProtected: false,
};

export const TTLS = [
  { id: "none", label: "When I release it" },
  { id: "28800", label: "After 8 hours" },
  { id: "86400", label: "After a day" },
  { id: "604800", label: "After 7 days" },
  { id: "2592000", label: "After 30 days" },
];

export const GROUPS = [
  { id: "none", label: "No wish" },
  { id: "leaf", label: "One leaf switch" },
  { id: "rail-block", label: "One rail block" },
  { id: "block", label: "One block" },
  { id: "nvlink-domain", label: "One NVLink domain" },
];

type Same = NonNullable<NonNullable<ClusterOrder["placement"]>["same"]>;

const NAME = /^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/;
/** A price is asked for before there is a name; this one can be no cluster's, so none is in its way. */
const UNNAMED = `unnamed-${crypto.randomUUID().slice(0, 8)}`;

export function nameProblem(name: string): string | undefined {
  if (name === "" || NAME.test(name)) return undefined;
  return "Use 1 to 63 lower-case letters, digits and dashes; begin with a letter.";
}

/** The order as the API takes it; null while a part is missing. */
export function orderOf(draft: Draft): ClusterOrder | null {
  if (!draft.project || !draft.nodeType || nameProblem(draft.name)) return null;
  return {
    name: draft.name || UNNAMED,
    kind: draft.kind,
    site: draft.site || null,
    image: draft.image,
    pools: [{ name: "default", node_type: draft.nodeType, count: draft.count }],
    ssh_keys: draft.keys,
    volumes: [],
    placement: {
      shape: draft.shape,
      ...(draft.same === "none" ? {} : { same: draft.same as Same }),
    } as ClusterOrder["placement"],
    wait_for_capacity: draft.waits,
    ttl_s: draft.ttl === "none" ? null : Number(draft.ttl),
    protected: draft.isProtected,
  };
}

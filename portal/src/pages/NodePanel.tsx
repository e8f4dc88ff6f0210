/** One node of the map, in full. */
import { useQuery } from "@tanstack/react-query";
import type { Node } from "../api/client";
import { clusters } from "../api/queries";
import { Button } from "../ui/controls";
import { age, words } from "../ui/format";
import { useNow } from "../ui/hooks";
import { Facts, Link, StatePill } from "../ui/parts";
import { useProjectNames } from "./places";

export function NodePanel({ node, onClose }: { node: Node | undefined; onClose: () => void }) {
  const projectNames = useProjectNames();
  const holders = useQuery(clusters).data;
  const now = useNow(5000);
  if (!node) return null;
  const cluster = holders?.find((one) => one.id === node.cluster_id);
  return (
    <aside className="panel node-panel" aria-label={`Node ${node.name}`}>
      <header className="panel-head">
        <h2>{node.name}</h2>
        <Button kind="quiet" aria-label="Close" onPress={onClose}>
          ✕
        </Button>
      </header>
      <p className="row">
        <StatePill state={node.state} /> <span className="soft">for {age(node.since, now)}</span>
      </p>
      {node.reason && <p className="soft">{node.reason}</p>}
      {node.cordoned && <p className="soft">Cordoned: {node.cordon_reason || "no reason given"}</p>}
      <Facts
        items={[
          ["Type", node.node_type],
          ["Rack", node.rack],
          ["Vendor", node.vendor],
          ["Serial", <code key="serial">{node.serial}</code>],
          ["Power", words(node.power || "unknown")],
          ["Health", `${words(node.health || "unknown")}${node.health_reason ? `: ${node.health_reason}` : ""}`],
          [
            "Cluster",
            cluster ? (
              <Link
                key="cluster"
                to="/clusters/$project/$cluster"
                params={{ project: cluster.project_id, cluster: cluster.name }}
              >
                {cluster.name}
              </Link>
            ) : (
              "none"
            ),
          ],
          ["Project", node.project_id ? (projectNames.get(node.project_id) ?? node.project_id) : "none"],
          ["Id", <code key="id">{node.id}</code>],
        ]}
      />
    </aside>
  );
}

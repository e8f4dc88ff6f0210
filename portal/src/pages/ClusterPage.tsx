/** One cluster: what happens to it, what it is, and its nodes. */
import { useQuery } from "@tanstack/react-query";
import { useParams } from "@tanstack/react-router";
import type { Cluster, Operation } from "../api/client";
import { cluster as clusterQuery, operation as operationQuery } from "../api/queries";
import { Saga } from "../saga/Saga";
import { age, moment, words } from "../ui/format";
import { useNow, useTitle } from "../ui/hooks";
import { Command, Empty, Facts, Link, Loading, PageHead, ProblemNote, StatePill } from "../ui/parts";
import { Problem } from "../api/problem";
import { CancelButton, ReleaseButton } from "./ClusterActions";
import { useProjectNames, useSiteNames } from "./places";

export function ClusterPage() {
  const { project, cluster: name } = useParams({ from: "/clusters/$project/$cluster" });
  const { data, error } = useQuery(clusterQuery(project, name));
  const { data: operation, error: unknown } = useQuery({
    ...operationQuery(data?.operation_id ?? ""),
    enabled: data !== undefined,
  });
  const projectNames = useProjectNames();
  useTitle(name);

  if (error instanceof Problem && error.status === 404) {
    return (
      <Empty alone title={`No cluster named ${name}`} action={<Link to="/clusters">All clusters</Link>}>
        It was released, or it belongs to a project that you may not see.
      </Empty>
    );
  }
  if (!data) return error ? <ProblemNote error={error} /> : <Loading what={name} />;
  return (
    <>
      <nav className="crumbs" aria-label="Where you are">
        <Link to="/clusters">Clusters</Link>
        <span aria-hidden="true">/</span>
        <span>{projectNames.get(project) ?? "…"}</span>
      </nav>
      <PageHead
        title={
          <>
            {data.name} <StatePill state={data.state} />
          </>
        }
        detail={subtitle(data)}
      >
        {operation && <CancelButton operation={operation} />}
        <ReleaseButton cluster={data} />
      </PageHead>
      <ProblemNote error={unknown} />
      <div className="cluster">
        <div className="stack">
          {operation && <Saga operation={operation} />}
          <Members cluster={data} operation={operation} />
        </div>
        <Details cluster={data} />
      </div>
    </>
  );
}

function subtitle(cluster: Cluster): string {
  const pools = cluster.pools.map((pool) => `${pool.count} × ${pool.node_type}`).join(", ");
  const reason = cluster.reason && cluster.reason !== cluster.state ? ` · ${cluster.reason}` : "";
  return `${pools} · ${cluster.kind === "slurm" ? "Slurm" : "bare servers"}${reason}`;
}

function Members({ cluster, operation }: { cluster: Cluster; operation: Operation | undefined }) {
  if (cluster.nodes.length === 0) {
    const waits = operation?.state === "pending" ? "The order waits for its turn." : "";
    return (
      <section className="panel" aria-label="Nodes">
        <h2>Nodes</h2>
        <p className="soft">{cluster.state === "deleted" ? "All were given back." : `None yet. ${waits}`}</p>
      </section>
    );
  }
  return (
    <section className="panel table-panel" aria-label="Nodes">
      <table>
        <thead>
          <tr>
            <th scope="col">Node</th>
            <th scope="col">Pool</th>
            <th scope="col">Type</th>
            <th scope="col">Allocation</th>
            <th scope="col">Drained</th>
          </tr>
        </thead>
        <tbody>
          {cluster.nodes.map((node) => (
            <tr key={node.node_id}>
              <td className="mono">{node.name}</td>
              <td>{node.pool}</td>
              <td>{node.node_type}</td>
              <td>{words(node.allocation)}</td>
              <td>{node.drained_by ? `by ${node.drained_by}: ${node.drain_reason ?? ""}` : "no"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function Details({ cluster }: { cluster: Cluster }) {
  const siteNames = useSiteNames();
  const now = useNow(5000);
  return (
    <aside className="panel" aria-label="Details">
      <h2>Details</h2>
      <Facts
        items={[
          ["Site", siteNames.get(cluster.site_id) ?? "…"],
          ["Image", cluster.image],
          ["SSH keys", cluster.ssh_keys.length ? cluster.ssh_keys.length : "none"],
          ["Placement", cluster.placement || "not placed yet"],
          ["Ends", cluster.expires_at ? moment(cluster.expires_at) : "when you release it"],
          ["Protected", cluster.protected ? "yes" : "no"],
          ["Ordered", `${age(cluster.created_at, now)} ago`],
          ...cluster.conditions.map((one): [string, string] => [
            one.type,
            `${one.status}${one.message ? `: ${one.message}` : ""}`,
          ]),
          ["Id", <code key="id">{cluster.id}</code>],
        ]}
      />
      <h3>On the command line</h3>
      <Command>{`dflare cluster show ${cluster.name}`}</Command>
      <Command>{`dflare operation trace ${cluster.operation_id}`}</Command>
    </aside>
  );
}

/** All clusters that the caller may read. */
import { useQuery } from "@tanstack/react-query";
import { Link as RouterLink } from "@tanstack/react-router";
import type { Cluster } from "../api/client";
import { clusters } from "../api/queries";
import { age } from "../ui/format";
import { useNow, useTitle } from "../ui/hooks";
import { Empty, Link, Loading, PageHead, ProblemNote, StatePill } from "../ui/parts";
import { useProjectNames, useSiteNames } from "./places";

export function ClustersPage() {
  const { data, error } = useQuery(clusters);
  useTitle("Clusters");
  const order = (
    <RouterLink to="/order" className="button primary">
      Order a cluster
    </RouterLink>
  );
  return (
    <>
      <PageHead title="Clusters" detail="Servers that belong to you until you give them back">
        {data && data.length > 0 && order}
      </PageHead>
      <ProblemNote error={error} />
      {!data && !error && <Loading what="your clusters" />}
      {data?.length === 0 && (
        <Empty title="No clusters yet" action={order}>
          Order bare servers or a Slurm cluster; you see the price before anything is ordered.
        </Empty>
      )}
      {data && data.length > 0 && <Table clusters={data} />}
    </>
  );
}

function Table({ clusters: found }: { clusters: readonly Cluster[] }) {
  const projectNames = useProjectNames();
  const siteNames = useSiteNames();
  const now = useNow(5000);
  const newest = [...found].sort((a, b) => b.created_at.localeCompare(a.created_at));
  return (
    <div className="panel table-panel">
      <table>
        <thead>
          <tr>
            <th scope="col">Name</th>
            <th scope="col">State</th>
            <th scope="col">Nodes</th>
            <th scope="col">Kind</th>
            <th scope="col">Project</th>
            <th scope="col">Site</th>
            <th scope="col" className="right">
              Age
            </th>
          </tr>
        </thead>
        <tbody>
          {newest.map((one) => (
            <tr key={one.id}>
              <td>
                <Link
                  className="row-link"
                  to="/clusters/$project/$cluster"
                  params={{ project: one.project_id, cluster: one.name }}
                >
                  {one.name}
                </Link>
              </td>
              <td>
                <StatePill state={one.state} />
              </td>
              <td className="number">
                {one.pools.map((pool) => `${pool.count} × ${pool.node_type}`).join(", ")}
              </td>
              <td>{one.kind}</td>
              <td>{projectNames.get(one.project_id) ?? "…"}</td>
              <td>{siteNames.get(one.site_id) ?? "…"}</td>
              <td className="number right">{age(one.created_at, now)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

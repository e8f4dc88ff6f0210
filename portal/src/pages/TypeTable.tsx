/** What a site has, by node type. */
import type { Node } from "../api/client";
import { KINDS, kindOf } from "../map/kinds";

export function TypeTable({ nodes }: { nodes: readonly Node[] }) {
  const types = [...Map.groupBy(nodes, (node) => node.node_type)].sort(
    (a, b) => b[1].length - a[1].length,
  );
  return (
    <section className="panel table-panel" aria-label="Node types">
      <table>
        <thead>
          <tr>
            <th scope="col">Node type</th>
            <th scope="col" className="right">
              Nodes
            </th>
            {KINDS.map(({ kind, title }) => (
              <th key={kind} scope="col" className="right">
                {title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {types.map(([type, found]) => {
            const counts = Map.groupBy(found, kindOf);
            return (
              <tr key={type}>
                <td>{type}</td>
                <td className="number right">{found.length.toLocaleString("en")}</td>
                {KINDS.map(({ kind }) => {
                  const number = counts.get(kind)?.length ?? 0;
                  return (
                    <td key={kind} className={number ? "number right" : "number right soft"}>
                      {number.toLocaleString("en")}
                    </td>
                  );
                })}
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}

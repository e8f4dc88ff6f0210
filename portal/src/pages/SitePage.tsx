/** A site: how many nodes are in which state, and where they stand. */
import { useState } from "react";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useParams } from "@tanstack/react-router";
import { SearchField, Input } from "react-aria-components";
import type { Node } from "../api/client";
import { nodes, sites, whoami } from "../api/queries";
import { Legend } from "../map/Legend";
import type { Kind } from "../map/kinds";
import { SiteMap } from "../map/SiteMap";
import { Select } from "../ui/controls";
import { count } from "../ui/format";
import { useTitle } from "../ui/hooks";
import { Command, Empty, Loading, PageHead, ProblemNote } from "../ui/parts";
import { NodePanel } from "./NodePanel";
import { TypeTable } from "./TypeTable";

export function SitePage() {
  const { site: wanted } = useParams({ strict: false });
  const known = useQuery(sites);
  const asked = useQuery(nodes);
  const caller = useQuery(whoami);
  const navigate = useNavigate();
  const [kind, setKind] = useState<Kind | null>(null);
  const [search, setSearch] = useState("");
  const [selected, setSelected] = useState<string | null>(null);
  const site = known.data?.find((one) => one.name === wanted) ?? known.data?.[0];
  useTitle(site ? `Site ${site.name}` : "Sites");

  if (known.error && !known.data) return <ProblemNote error={known.error} />;
  if (!known.data || !asked.data) {
    return asked.error ? <ProblemNote error={asked.error} /> : <Loading what="the site" />;
  }
  if (!site) {
    return (
      <Empty alone title="No site yet">
        An operator describes one in a file and loads it: <Command>dflare site apply site.yaml</Command>
      </Empty>
    );
  }
  const here = asked.data.filter((node) => node.site_id === site.id);
  const isOperator = caller.data?.bindings.some((one) => one.organization_id === null) ?? false;
  return (
    <>
      <PageHead title={<>Site {site.name}</>} detail={summary(here, site.region, isOperator)}>
        {known.data.length > 1 && (
          <Select
            label="Site"
            hideLabel
            value={site.name}
            onChange={(name) => void navigate({ to: "/sites/$site", params: { site: name } })}
            choices={known.data.map((one) => ({ id: one.name, label: one.name, detail: one.region }))}
          />
        )}
      </PageHead>
      {here.length === 0 ? (
        <Empty title={isOperator ? "No nodes yet" : "You hold no nodes here"}>
          {isOperator
            ? "The site was declared without nodes, or they were not enrolled yet."
            : "Nodes appear here while one of your clusters holds them."}
        </Empty>
      ) : (
        <div className={selected ? "site with-panel" : "site"}>
          <div className="stack">
            <section className="panel map-panel" aria-label="Map">
              <div className="map-bar">
                <Legend nodes={here} kind={kind} onKind={setKind} />
                <SearchField
                  className="search"
                  aria-label="Find nodes"
                  value={search}
                  onChange={setSearch}
                >
                  <Input className="input" placeholder="Find by name, rack, type…" />
                </SearchField>
              </div>
              <SiteMap
                nodes={here}
                kind={kind}
                search={search}
                selected={selected}
                onSelect={setSelected}
              />
            </section>
            <TypeTable nodes={here} />
          </div>
          {selected && (
            <NodePanel
              node={here.find((node) => node.id === selected)}
              onClose={() => setSelected(null)}
            />
          )}
        </div>
      )}
    </>
  );
}

function summary(here: readonly Node[], region: string, isOperator: boolean): string {
  const racks = new Set(here.map((node) => node.rack)).size;
  const whose = isOperator ? "" : " in your hands";
  return `${count(here.length, "node")}${whose} in ${count(racks, "rack")}${region ? ` · ${region}` : ""}`;
}

/** The fields of an order. */
import { useQuery } from "@tanstack/react-query";
import { Disclosure, DisclosurePanel, Button as AriaButton, Heading } from "react-aria-components";
import type { NodeType, Project } from "../api/client";
import { images } from "../api/queries";
import { Cards, Checkbox, NumberField, Select, TextField } from "../ui/controls";
import { count, money } from "../ui/format";
import { GROUPS, nameProblem, TTLS, type Draft } from "./order";
import { useProjectNames, useSiteNames } from "./places";
import { SshKeys } from "./SshKeys";

interface Props {
  draft: Draft;
  change: (part: Partial<Draft>) => void;
  projects: readonly Project[];
  offers: readonly NodeType[];
}

export function OrderForm({ draft, change, projects, offers }: Props) {
  const projectNames = useProjectNames();
  const siteNames = useSiteNames();
  const sites = [...new Set(offers.map((one) => one.site_id))];
  const here = offers.filter((one) => one.site_id === draft.site);
  return (
    <div className="order-form">
      <section className="panel" aria-label="Cluster">
        <div className="two">
          {projects.length > 1 && (
            <Select
              label="Project"
              value={draft.project}
              onChange={(project) => change({ project, keys: [] })}
              choices={projects.map((one) => ({
                id: one.id,
                label: projectNames.get(one.id) ?? one.name,
              }))}
            />
          )}
          <TextField
            label="Name"
            value={draft.name}
            onChange={(name) => change({ name })}
            error={nameProblem(draft.name)}
            hint="Unique in the project, such as training-a"
            isRequired
            mono
          />
        </div>
        <Cards
          label="What runs on it"
          value={draft.kind}
          onChange={(kind) => change({ kind: kind as Draft["kind"] })}
          choices={[
            { id: "bare", label: "Bare servers", detail: "Your image, your SSH keys, root" },
            { id: "slurm", label: "Slurm", detail: "A scheduler of its own, with accounting" },
          ]}
        />
      </section>
      <section className="panel" aria-label="Nodes">
        {sites.length > 1 && (
          <Select
            label="Site"
            value={draft.site}
            onChange={(site) =>
              change({ site, nodeType: offers.find((one) => one.site_id === site)?.name ?? "" })
            }
            choices={sites.map((id) => ({ id, label: siteNames.get(id) ?? id }))}
          />
        )}
        <Cards
          label="Node type"
          value={draft.nodeType}
          onChange={(nodeType) => change({ nodeType })}
          choices={here.map((one) => ({ id: one.name, label: one.name, detail: offerDetail(one) }))}
        />
        <NumberField
          label="Nodes"
          value={draft.count}
          onChange={(nodes) => change({ count: nodes })}
          minValue={1}
          maxValue={8192}
        />
      </section>
      <section className="panel" aria-label="Access">
        <SshKeys project={draft.project} chosen={draft.keys} onChange={(keys) => change({ keys })} />
      </section>
      <section className="panel">
        <Wishes draft={draft} change={change} />
      </section>
    </div>
  );
}

function offerDetail(offer: NodeType) {
  const gpus = offer.gpus > 0 ? `${offer.gpus} × ${offer.gpu_model ?? "GPU"}` : "no GPU";
  const rails = offer.infiniband_rails > 0 ? `, ${count(offer.infiniband_rails, "rail")}` : "";
  return (
    <>
      <span>{gpus + rails}</span>
      <span className="number">{money(offer.price_per_node_hour, offer.currency)} / h</span>
    </>
  );
}

function Wishes({ draft, change }: Pick<Props, "draft" | "change">) {
  const known = useQuery(images).data ?? [];
  const here = known.filter((one) => one.site_id === draft.site);
  return (
    <Disclosure className="disclosure">
      <Heading level={2}>
        <AriaButton slot="trigger" className="disclosure-trigger">
          <span aria-hidden="true" className="chevron">
            ▸
          </span>
          Wishes: image, placement, waiting, end
        </AriaButton>
      </Heading>
      <DisclosurePanel className="disclosure-panel">
        <div className="two">
          <Select
            label="Image"
            value={draft.image}
            onChange={(image) => change({ image })}
            choices={[
              { id: "default", label: "The site's first" },
              ...here.map((one) => ({ id: one.name, label: one.name })),
            ]}
          />
          <Select
            label="It ends"
            value={draft.ttl}
            onChange={(ttl) => change({ ttl })}
            choices={TTLS}
          />
        </div>
        <Cards
          label="Placement"
          compact
          value={draft.shape}
          onChange={(shape) => change({ shape: shape as Draft["shape"] })}
          choices={[
            { id: "pack", label: "Close together", detail: "Fewest hops between nodes" },
            { id: "spread", label: "Spread out", detail: "Over as many racks as possible" },
          ]}
        />
        <Select
          label="All within"
          value={draft.same}
          onChange={(same) => change({ same })}
          choices={GROUPS}
        />
        <Checkbox isSelected={draft.waits} onChange={(waits) => change({ waits })}>
          Wait in turn where too few nodes are free
        </Checkbox>
        <Checkbox
          isSelected={draft.isProtected}
          onChange={(isProtected) => change({ isProtected })}
        >
          Protect it: nobody releases it before that is taken back
        </Checkbox>
      </DisclosurePanel>
    </Disclosure>
  );
}

/** What the order would get and cost, or why it would be refused, before anything is ordered. */
import type { ClusterQuote } from "../api/client";
import { Problem } from "../api/problem";
import { Button } from "../ui/controls";
import { count, money } from "../ui/format";
import { ProblemNote, sentence } from "../ui/parts";
import type { Draft } from "./order";
import type { Sending } from "./OrderPage";

const HOURS_A_DAY = 24;
const HOURS_A_MONTH = 730;

interface Props {
  draft: Draft;
  isComplete: boolean;
  quote: ClusterQuote | undefined;
  error: unknown;
  isCurrent: boolean;
  isReady: boolean;
  sending: Sending;
}

export function QuotePanel(props: Props) {
  const { draft, isComplete, quote, error, isCurrent, sending } = props;
  const refusal = error instanceof Problem ? error : null;
  return (
    <aside className="panel quote" aria-label="Price" aria-live="polite" aria-busy={!isCurrent}>
      <h2>Price</h2>
      {!isComplete && (
        <p className="soft">Choose a project, a node type and a valid name to see the price.</p>
      )}
      {isComplete && refusal && (
        <div className="refusal" data-slug={refusal.slug}>
          <strong>{refusal.document.title}</strong>
          <p>{sentence(refusal.document.detail)}</p>
          {refusal.document.next_step && <p className="next-step">{refusal.document.next_step}</p>}
        </div>
      )}
      {isComplete && !refusal && quote && <Figures draft={draft} quote={quote} isCurrent={isCurrent} />}
      {isComplete && !refusal && !quote && <p className="soft">Asking what it would cost…</p>}
      <ProblemNote error={sending.error} title="It was not ordered" />
      <Button kind="primary" type="submit" isDisabled={!props.isReady} isPending={sending.isPending}>
        {buttonText(props)}
      </Button>
      {isComplete && !draft.name && !refusal && <p className="hint">Give it a name to order it.</p>}
      {sending.isWaiting && (
        <div className="problem waiting" role="status">
          <strong>The platform does not answer</strong>
          <span>
            The order is sent again as soon as it does, under the same key: it cannot be made twice.
          </span>
          <Button onPress={sending.stop}>Stop trying</Button>
        </div>
      )}
    </aside>
  );
}

function Figures(props: { draft: Draft; quote: ClusterQuote; isCurrent: boolean }) {
  const { quote, draft } = props;
  const hourly = Number(quote.price_per_hour);
  const { currency } = quote;
  return (
    <div className={props.isCurrent ? "figures" : "figures stale"}>
      <p className="price" data-price={quote.price_per_hour}>
        <span className="number">{money(quote.price_per_hour, currency)}</span>
        <span className="soft"> an hour</span>
      </p>
      <dl className="facts">
        <div>
          <dt>{count(draft.count, "node")} of</dt>
          <dd>{draft.nodeType}</dd>
        </div>
        <div>
          <dt>A day</dt>
          <dd className="number">{money(String(hourly * HOURS_A_DAY), currency)}</dd>
        </div>
        <div>
          <dt>A month (730 h)</dt>
          <dd className="number">{money(String(hourly * HOURS_A_MONTH), currency)}</dd>
        </div>
      </dl>
      <h3>{quote.waits ? "It would wait" : "Where"}</h3>
      <p className="soft">{sentence(quote.placement)}</p>
      {quote.nodes.length > 0 && (
        <details>
          <summary>{count(quote.nodes.length, "node")}</summary>
          <p className="mono node-names">{quote.nodes.join(" ")}</p>
        </details>
      )}
      <p className="hint">
        Billed from hand-over to your request of release. Somebody else may be quicker: nodes are
        held only once you order.
      </p>
    </div>
  );
}

function buttonText({ draft, quote, isReady, sending }: Props): string {
  if (sending.isPending) return "Ordering…";
  if (!isReady || !quote) return "Order";
  const price = money(quote.price_per_hour, quote.currency);
  return `Order ${count(draft.count, "node")} for ${price} an hour`;
}

export function Mark() {
  return (
    <svg className="mark" viewBox="0 0 32 32" role="img" aria-label="Dflare">
      <rect className="mark-ground" width="32" height="32" rx="8" />
      <g className="mark-nodes">
        <rect x="8" y="7" width="5" height="5" rx="1.2" />
        <rect x="8" y="13.5" width="5" height="5" rx="1.2" />
        <rect x="8" y="20" width="5" height="5" rx="1.2" />
        <rect x="14.5" y="7" width="5" height="5" rx="1.2" />
        <rect x="14.5" y="20" width="5" height="5" rx="1.2" />
        <rect className="mark-lit" x="20.5" y="13.5" width="5" height="5" rx="1.2" />
      </g>
    </svg>
  );
}

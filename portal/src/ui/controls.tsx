/** Controls with names, hints and errors in one place; behaviour and accessibility are React Aria's. */
import type { ReactNode } from "react";
import {
  Button as AriaButton,
  Checkbox as AriaCheckbox,
  Dialog as AriaDialog,
  FieldError,
  Heading,
  Input,
  Label,
  ListBox,
  ListBoxItem,
  Modal,
  ModalOverlay,
  NumberField as AriaNumberField,
  Popover,
  Radio,
  RadioGroup,
  Select as AriaSelect,
  SelectValue,
  Text,
  TextArea,
  TextField as AriaTextField,
  type ButtonProps,
} from "react-aria-components";

export function Button({
  kind = "plain",
  className = "",
  ...rest
}: ButtonProps & { kind?: "plain" | "primary" | "danger" | "quiet"; className?: string }) {
  return <AriaButton {...rest} className={`button ${kind} ${className}`} />;
}

interface FieldProps {
  label: string;
  value: string;
  onChange: (value: string) => void;
  hint?: ReactNode;
  error?: string | undefined;
  placeholder?: string;
  isRequired?: boolean;
  mono?: boolean;
  rows?: number;
}

export function TextField(props: FieldProps) {
  const look = props.mono ? "input mono" : "input";
  return (
    <AriaTextField
      className="field"
      value={props.value}
      onChange={props.onChange}
      isInvalid={Boolean(props.error)}
      isRequired={props.isRequired ?? false}
      validationBehavior="aria"
      autoComplete="off"
      spellCheck="false"
    >
      <Label>{props.label}</Label>
      {props.rows ? (
        <TextArea className={look} rows={props.rows} placeholder={props.placeholder ?? ""} />
      ) : (
        <Input className={look} placeholder={props.placeholder ?? ""} />
      )}
      {props.hint && !props.error && (
        <Text slot="description" className="hint">
          {props.hint}
        </Text>
      )}
      <FieldError className="field-error">{props.error}</FieldError>
    </AriaTextField>
  );
}

export function NumberField(props: {
  label: string;
  value: number;
  onChange: (value: number) => void;
  minValue: number;
  maxValue: number;
  hint?: ReactNode;
}) {
  return (
    <AriaNumberField
      className="field"
      value={props.value}
      onChange={(value) => props.onChange(Number.isNaN(value) ? props.minValue : value)}
      minValue={props.minValue}
      maxValue={props.maxValue}
      formatOptions={{ useGrouping: false }}
      validationBehavior="aria"
    >
      <Label>{props.label}</Label>
      <div className="stepper">
        <AriaButton slot="decrement">−</AriaButton>
        <Input
          className="input"
          onInput={(event) => {
            // What is typed counts at once: a price is asked for it before the field is left.
            const typed = Number(event.currentTarget.value);
            if (Number.isInteger(typed) && typed >= props.minValue && typed <= props.maxValue) {
              props.onChange(typed);
            }
          }}
        />
        <AriaButton slot="increment">+</AriaButton>
      </div>
      {props.hint && (
        <Text slot="description" className="hint">
          {props.hint}
        </Text>
      )}
    </AriaNumberField>
  );
}

export interface Choice {
  id: string;
  label: string;
  detail?: ReactNode;
}

export function Select(props: {
  label: string;
  value: string;
  onChange: (value: string) => void;
  choices: readonly Choice[];
  placeholder?: string;
  hideLabel?: boolean;
}) {
  return (
    <AriaSelect
      className="field"
      value={props.value || null}
      onChange={(key) => props.onChange(String(key ?? ""))}
      placeholder={props.placeholder ?? "Choose"}
      {...(props.hideLabel ? { "aria-label": props.label } : {})}
    >
      {!props.hideLabel && <Label>{props.label}</Label>}
      <AriaButton className="select-button">
        <SelectValue>{({ selectedText, defaultChildren }) => selectedText || defaultChildren}</SelectValue>
        <span aria-hidden="true" className="chevron">
          ▾
        </span>
      </AriaButton>
      <Popover className="popover">
        <ListBox className="list-box" items={props.choices}>
          {(choice) => (
            <ListBoxItem className="list-item" id={choice.id} textValue={choice.label}>
              <Text slot="label">{choice.label}</Text>
              {choice.detail && (
                <Text slot="description" className="hint">
                  {choice.detail}
                </Text>
              )}
            </ListBoxItem>
          )}
        </ListBox>
      </Popover>
    </AriaSelect>
  );
}

/** One of a few, each shown whole. */
export function Cards(props: {
  label: string;
  value: string;
  onChange: (value: string) => void;
  choices: readonly Choice[];
  compact?: boolean;
}) {
  return (
    <RadioGroup
      className={props.compact ? "field cards compact" : "field cards"}
      value={props.value}
      onChange={props.onChange}
    >
      <Label>{props.label}</Label>
      <div className="card-row">
        {props.choices.map((choice) => (
          <Radio key={choice.id} value={choice.id} className="card-choice">
            <strong>{choice.label}</strong>
            {choice.detail && <span className="hint">{choice.detail}</span>}
          </Radio>
        ))}
      </div>
    </RadioGroup>
  );
}

export function Checkbox(props: {
  isSelected: boolean;
  onChange: (selected: boolean) => void;
  children: ReactNode;
}) {
  return (
    <AriaCheckbox className="checkbox" isSelected={props.isSelected} onChange={props.onChange}>
      <span className="check" aria-hidden="true" />
      <span>{props.children}</span>
    </AriaCheckbox>
  );
}

export function Dialog(props: {
  title: string;
  isOpen: boolean;
  onClose?: () => void;
  role?: "dialog" | "alertdialog";
  children: ReactNode;
}) {
  const dismissable = props.onClose !== undefined;
  return (
    <ModalOverlay
      className="overlay"
      isOpen={props.isOpen}
      onOpenChange={(open) => !open && props.onClose?.()}
      isDismissable={dismissable}
      isKeyboardDismissDisabled={!dismissable}
    >
      <Modal className="modal">
        <AriaDialog className="dialog" role={props.role ?? "dialog"}>
          <Heading slot="title">{props.title}</Heading>
          {props.children}
        </AriaDialog>
      </Modal>
    </ModalOverlay>
  );
}

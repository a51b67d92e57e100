// Orders steps by numbers or ISO 8601 times.

import { toNumber } from "./csv.js";

const LONG = /^\d{16,}$/; // such as nanoseconds since 1970, which a number can't hold exactly
const TIME =
  /^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?::(\d\d)(?:[.,](\d+))?)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?$/i;

/**
 * @param {string} cell
 * @returns {number | bigint | undefined} a key to sort by; a time counts in microseconds
 *   since 1970, and is UTC without a zone; undefined if the cell is neither
 */
export function stepKey(cell) {
  const text = cell.trim();
  if (LONG.test(text)) return BigInt(text);
  const number = toNumber(text, ";"); // a decimal comma, too
  if (number !== undefined) return Number.isNaN(number) ? undefined : number;
  const [, date, hours = "00:00", seconds = "00", fraction = "", zone = "Z"] =
    text.match(TIME) ?? [];
  if (!date) return undefined;
  const full = /^[+-]\d\d$/.test(zone) ? `${zone}:00` : zone.replace(/^(...)(\d\d)$/, "$1:$2");
  const whole = Date.parse(`${date}T${hours}:${seconds}${full.toUpperCase()}`);
  if (Number.isNaN(whole)) return undefined;
  return whole * 1000 + Number(fraction.slice(0, 6).padEnd(6, "0"));
}

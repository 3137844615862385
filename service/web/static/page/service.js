// Asks the service: with the key where one is needed, again where it is busy, and with refusals in its own words.

import { say } from "./messages.js";

const MOST_TRIES = 6;
const LONGEST_WAIT_S = 20;
const AGAIN_S = 0.5;
// In memory only: it is gone with the page.
let key = "";
/** @type {((detail: string, wasGiven: boolean) => Promise<string>) | null} */
let askForKey = null;
/** @type {Promise<string> | null} */
let asking = null;

/** A refusal: the service's problem document. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {Record<string, any>} told
   */
  constructor(status, told) {
    super(told.detail || told.title || `the service answered ${status}`);
    this.status = status;
    this.code = told.code || "";
    this.told = told;
  }
}

/**
 * Whoever shows the question for a key; it returns a promise of the key, or of "" where none is given.
 * @param {(detail: string, wasGiven: boolean) => Promise<string>} question
 */
export function onKeyNeeded(question) {
  askForKey = question;
}

/** Whether pictures have to be fetched with a header, which an `<img>` cannot send. */
export function hasKey() {
  return key !== "";
}

/**
 * An answer of the service; `path` is relative to the page.
 * @param {string} path
 * @param {RequestInit} [options]
 */
export async function ask(path, options = {}) {
  for (let tries = 1; ; tries += 1) {
    const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
    const used = key;
    const answer = await reach(path, { ...options, headers });
    if (answer.ok) return answer;
    const problem = await problemOf(answer);
    if (answer.status === 401 && (await getKey(used, problem))) continue;
    const wait = Number(answer.headers.get("Retry-After"));
    if (![429, 503].includes(answer.status) || !wait || tries === MOST_TRIES) throw problem;
    say(`The service is busy: trying again in ${wait} s.`, { kind: "busy", lasts: wait });
    await pause(Math.min(wait, LONGEST_WAIT_S) * (1 + Math.random() / 4), options.signal);
  }
}

/**
 * An answer's JSON.
 * @param {string} path
 * @param {RequestInit} [options]
 */
export async function askJson(path, options) {
  return (await ask(path, options)).json();
}

/**
 * An answer's bytes.
 * @param {string} path
 * @param {RequestInit} [options]
 */
export async function askBytes(path, options) {
  return (await ask(path, options)).arrayBuffer();
}

/**
 * A connection that breaks is tried once more: everything that the page asks may be asked twice.
 * @param {string} path
 * @param {RequestInit} options
 */
async function reach(path, options, last = false) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!last) {
      await pause(AGAIN_S);
      return reach(path, options, true);
    }
    throw new Problem(0, { code: "unreachable", detail: "The service cannot be reached. Is it still running?" });
  }
}

/** @param {Response} answer */
async function problemOf(answer) {
  const text = await answer.text();
  try {
    return new Problem(answer.status, JSON.parse(text));
  } catch {
    return new Problem(answer.status, { detail: `the service answered ${answer.status}` });
  }
}

/**
 * One question at a time, however many answers wait for the key.
 * @param {string} used
 * @param {Problem} problem
 */
async function getKey(used, problem) {
  if (used !== key) return true;
  if (!askForKey) return false;
  asking ??= askForKey(problem.message, used !== "").finally(() => (asking = null));
  const given = await asking;
  if (!given) return false;
  key = given;
  return true;
}

/**
 * @param {number} seconds
 * @param {AbortSignal | null} [signal]
 */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

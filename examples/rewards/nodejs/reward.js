// The reward itself: the only file that another reward has to change.
//
// It scores how many of the words of `reference.keywords` a completion has, and marks the place of each as a step.

export const description = {
  name: 'keywords',
  version: '1',
  minimum: 0,
  maximum: 1,
  maxBatchSamples: 1024,
};

// Thrown for a sample that cannot be scored; any other error counts as a fault of this code.
export class InvalidSample extends Error {}

// The reward of one sample; `sample.reference` is plain JSON here.
export function score(sample) {
  const { keywords } = sample.reference;
  if (!Array.isArray(keywords) || keywords.length === 0 || !keywords.every((word) => typeof word === 'string')) {
    throw new InvalidSample('reference.keywords must be a list of words, and have at least one');
  }
  const steps = keywords.flatMap((word) => span(sample.completion, word)).sort((a, b) => a.start - b.start);
  return { value: steps.length / keywords.length, steps };
}

// Where the word stands first. The contract counts code points; a JavaScript string counts UTF-16 units.
function span(text, word) {
  const index = text.indexOf(word);
  if (index < 0) return [];
  const start = [...text.slice(0, index)].length;
  return [{ start, end: start + [...word].length, value: 1 }];
}

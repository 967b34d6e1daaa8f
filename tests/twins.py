"""Slow twins of the method, in float64 and plain loops, written from the equations and not from the code."""

import math

import torch


def rows_of(lengths):
    return torch.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))


def by_row(rows, *streams):
    """Lists of each sequence's values."""
    groups = {}
    for place, row in enumerate(rows.tolist()):
        groups.setdefault(row, []).append(tuple(stream[place].item() for stream in streams))
    return list(groups.values())


def slow_fixed_spans(rows, size):
    spans, span, seen = [], -1, {}
    for row in rows.tolist():
        count = seen.get(row, 0)
        span += count % size == 0
        seen[row] = count + 1
        spans.append(span)
    return spans


def slow_newline_spans(rows, ends_line, min_tokens, max_tokens, size):
    """Lines -> short ones joined to the next -> long ones cut."""
    spans, span = [], 0
    for group in by_row(rows, ends_line):
        ends = [end for (end,) in group]
        if not any(ends):
            pieces = [[None] * min(size, len(ends) - i) for i in range(0, len(ends), size)]
        else:
            lines, line = [], []
            for end in ends:
                line.append(end)
                if end:
                    lines.append(line)
                    line = []
            lines += [line] if line else []
            joined = []
            for line in lines:
                if joined and len(joined[-1]) < min_tokens:
                    joined[-1] = joined[-1] + line
                else:
                    joined.append(line)
            pieces = [part[i : i + max_tokens] for part in joined for i in range(0, len(part), max_tokens)]
        for piece in pieces:
            spans += [span] * len(piece)
            span += 1
    return spans


def slow_gate(logp, behaviour, spans, tau, statistic):
    shift = [p - o for p, o in zip(logp.double().tolist(), behaviour.double().tolist())]
    members = {}
    for place, span in enumerate(spans.tolist()):
        members.setdefault(span, []).append(shift[place])
    drift = {
        "abs_mean": lambda d: abs(math.fsum(d) / len(d)),
        "mean_abs": lambda d: math.fsum(abs(x) for x in d) / len(d),
        "rms": lambda d: math.sqrt(math.fsum(x * x for x in d) / len(d)),
    }[statistic]
    gate = {span: math.exp(-tau * drift(values)) for span, values in members.items()}
    return torch.tensor([gate[span] for span in spans.tolist()], dtype=torch.float64)


def slow_unit_mean(weights, groups):
    weights, groups = weights.double().tolist(), groups.tolist()
    members = {}
    for weight, group in zip(weights, groups):
        members.setdefault(group, []).append(weight)
    mean = {group: math.fsum(values) / len(values) for group, values in members.items()}
    return torch.tensor([w / mean[g] for w, g in zip(weights, groups)], dtype=torch.float64)


def slow_sampled_token_loss(logp, behaviour, teacher, advantage, clip, dual_clip):
    losses = []
    for p, o, q in zip(logp, behaviour.double(), teacher.double()):
        gain = q - (o if advantage == "frozen" else p.detach())
        ratio = torch.exp(p - o)
        clipped = min(max(ratio.item(), 1 - clip), 1 + clip)
        inside = 1 - clip <= ratio.item() <= 1 + clip
        one, other = ratio * gain, (ratio if inside else torch.tensor(clipped, dtype=torch.float64)) * gain
        loss = -(one if one.item() <= other.item() else other)
        if gain < 0 and loss.item() > -dual_clip * gain.item():
            loss = -dual_clip * gain
        losses.append(loss + 0 * p)  # a clipped token has gradient 0, not none
    return torch.stack(losses)


def slow_topk_reverse_kl(student, teacher):
    losses = []
    for s, t in zip(student, teacher.double()):
        p, q = torch.exp(s) / torch.exp(s).sum(), torch.exp(t) / torch.exp(t).sum()
        losses.append((p * (p.log() - q.log())).sum())
    return torch.stack(losses)


def slow_logprobs(hidden, weight, temperature):
    """The [N, V] tensor that the package never makes."""
    return torch.log_softmax(hidden @ weight.T / temperature, dim=-1)


def slow_head_logits(hidden, weight, bias=None, scale=1.0, cap=None):
    """[N, V] as a model with such a head makes them."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def slow_policy_gradient(logp, behaviour, teacher, advantage, clip, dual_clip, ratio):
    """Losses, with gradient, and which tokens a bound holds: case by case of the advantage's sign."""
    losses, held = [], []
    for p, o, q in zip(logp, behaviour.double(), teacher.double()):
        gain = (q - (o if advantage == "frozen" else p.detach())).item()
        r = torch.exp(p - (o if ratio == "behaviour" else p.detach()))
        floor = 1 - clip if clip is not None and gain < 0 else -math.inf
        ceiling = math.inf
        if gain > 0 and clip is not None:
            ceiling = 1 + clip
        if gain < 0 and dual_clip is not None:
            ceiling = dual_clip
        bounded = min(max(r.item(), floor), ceiling)
        held.append(gain != 0 and bounded != r.item())
        losses.append(-bounded * gain + 0 * p if held[-1] else -r * gain)
    return torch.stack(losses), held


def slow_candidate_loss(logp, behaviour, teacher, clip, dual_clip, present):
    losses = []
    for row, old, aim, there in zip(logp, behaviour, teacher, present.tolist()):
        slots = [v for v, held in enumerate(there) if held]
        total = math.fsum(math.exp(row[v].item()) for v in slots)
        loss = row.sum() * 0
        for v in slots:
            here = (x[v : v + 1] for x in (row, old, aim))
            one, _ = slow_policy_gradient(*here, "recomputed", clip, dual_clip, "behaviour")
            loss = loss + math.exp(row[v].item()) / total * one[0]
        losses.append(loss)
    return torch.stack(losses)


def slow_divergence(p, q, kind, beta=0.5):
    """Of two lists of masses (scalar tensors), class by class; 0 log 0 = 0."""

    def kl(a, b):
        return sum((x * (x.log() - y.log()) for x, y in zip(a, b) if x > 0), torch.zeros((), dtype=torch.float64))

    if kind == "reverse_kl":
        return kl(p, q)
    if kind == "forward_kl":
        return kl(q, p)
    m = [beta * y + (1 - beta) * x for x, y in zip(p, q)]
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def slow_support_divergence(log_p, log_q, kind, mass, beta, present):
    losses = []
    for ours, theirs, here in zip(log_p, log_q.double(), present.tolist()):
        p, q = ([row[v].exp() for v, there in enumerate(here) if there] for row in (ours, theirs))
        if mass == "renormalised":
            p, q = ([x / sum(side) for x in side] for side in (p, q)) if len(p) > 1 else ([], [])
        if mass == "tail":
            p, q = ([*side, torch.ones((), dtype=torch.float64) - sum(side)] for side in (p, q))
        losses.append(slow_divergence(p, q, kind, beta) + 0 * ours.sum())
    return torch.stack(losses)


def slow_union(student, teacher):
    return [t + [-1 if v in t else v for v in s] for s, t in zip(student.tolist(), teacher.tolist())]


def slow_intersection(student, teacher):
    return [[v if v in s else -1 for v in t] for s, t in zip(student.tolist(), teacher.tolist())]

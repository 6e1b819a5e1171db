//! Means with confidence intervals, and whether two of them differ.

use crate::report::Interval;

/// The 97.5 % points of Student's distribution for 1 to 9 degrees of freedom.
const T: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];

/// The same for more.
const T_MANY: f64 = 2.228;

/// Returns the mean of some figures that are not negative, with its 95 % confidence interval by
/// Student's distribution; of a single figure the interval is unknown. `None` if there are none.
pub(crate) fn interval(figures: &[f64]) -> Option<Interval> {
    let Interval { mean, low, high } = symmetric(figures)?;
    Some(Interval { mean, low: low.map(|low| low.max(0.0)), high })
}

fn symmetric(figures: &[f64]) -> Option<Interval> {
    let count = f64::from(u32::try_from(figures.len()).ok()?);
    if figures.is_empty() {
        return None;
    }
    let mean = figures.iter().sum::<f64>() / count;
    if figures.len() < 2 {
        return Some(Interval { mean, low: None, high: None });
    }
    let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
    let error = (squares / (count - 1.0) / count).sqrt();
    let half = T.get(figures.len() - 2).copied().unwrap_or(T_MANY) * error;
    Some(Interval { mean, low: Some(mean - half), high: Some(mean + half) })
}

/// Returns true if both intervals are known and do not overlap.
pub(crate) fn differ(a: &Interval, b: &Interval) -> bool {
    match (a.low, a.high, b.low, b.high) {
        (Some(a_low), Some(a_high), Some(b_low), Some(b_high)) => a_low > b_high || b_low > a_high,
        _ => false,
    }
}

/// Returns how many times as much `a` is as `b`, from figures that were taken in pairs: the
/// geometric mean of the pairs' ratios with its 95 % confidence interval. What changed over the
/// time of the run changed both of a pair alike, so that the ratio is known better than the two.
pub(crate) fn ratio(a: &[f64], b: &[f64]) -> Option<Interval> {
    if a.len() != b.len() || a.iter().chain(b).any(|figure| *figure <= 0.0) {
        return None;
    }
    let logarithms: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a / b).ln()).collect();
    let Interval { mean, low, high } = symmetric(&logarithms)?;
    Some(Interval { mean: mean.exp(), low: low.map(f64::exp), high: high.map(f64::exp) })
}

/// Returns true if a ratio's interval is known and does not contain 1.
pub(crate) fn shows_difference(ratio: &Interval) -> bool {
    matches!((ratio.low, ratio.high), (Some(low), Some(high)) if low > 1.0 || high < 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_that_of_student() {
        let found = interval(&[10.0, 12.0, 14.0]).unwrap();
        assert!((found.mean - 12.0).abs() < 1e-9);
        // The standard error is 2 / sqrt(3) = 1.1547, and t is 4.303.
        assert!((found.high.unwrap() - 16.9687).abs() < 1e-3, "{found:?}");
        assert!((found.low.unwrap() - 7.0313).abs() < 1e-3, "{found:?}");
        assert_eq!(interval(&[5.0]), Some(Interval { mean: 5.0, low: None, high: None }));
        assert_eq!(interval(&[]), None);
    }

    #[test]
    fn a_ratio_is_known_better_than_what_it_is_of_when_both_drift_alike() {
        let slower = [1000.0, 1500.0, 800.0, 1200.0];
        let faster = [1210.0, 1790.0, 965.0, 1430.0];
        let found = ratio(&faster, &slower).unwrap();
        assert!((found.mean - 1.2).abs() < 0.01 && shows_difference(&found), "{found:?}");
        assert!(!differ(&interval(&faster).unwrap(), &interval(&slower).unwrap()));
        let itself = ratio(&[1000.0, 1480.0, 790.0, 1220.0], &slower).unwrap();
        assert!(!shows_difference(&itself), "{itself:?}");
        assert_eq!((ratio(&[1.0], &[]), ratio(&[0.0, 1.0], &[1.0, 1.0])), (None, None));
        assert!(!shows_difference(&ratio(&[3.0], &[1.0]).unwrap()), "one pair shows nothing");
    }

    #[test]
    fn intervals_that_overlap_or_are_unknown_do_not_differ() {
        let of = |low, high| Interval { mean: 0.0, low: Some(low), high: Some(high) };
        assert!(differ(&of(1.0, 2.0), &of(2.1, 3.0)) && differ(&of(2.1, 3.0), &of(1.0, 2.0)));
        assert!(!differ(&of(1.0, 2.0), &of(1.9, 3.0)));
        assert!(!differ(&of(1.0, 2.0), &Interval { mean: 9.0, low: None, high: None }));
    }
}

//! Means with confidence intervals, and whether two of them differ.

use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::report::Interval;

/// How sure an interval of a report is.
const CONFIDENCE: f64 = 0.95;

/// Returns the mean of some figures that are not negative, with its 95 % confidence interval by
/// Student's distribution; of a single figure the interval is unknown. `None` if there are none.
pub(crate) fn interval(figures: &[f64]) -> Option<Interval> {
    let Interval { mean, low, high } = symmetric(figures)?;
    Some(Interval { mean, low: low.map(|low| low.max(0.0)), high })
}

fn symmetric(figures: &[f64]) -> Option<Interval> {
    let Sample { count, mean, variance } = Sample::of(figures)?;
    if count < 2.0 {
        return Some(Interval { mean, low: None, high: None });
    }
    let half = student(CONFIDENCE, count - 1.0)? * (variance / count).sqrt();
    Some(Interval { mean, low: Some(mean - half), high: Some(mean + half) })
}

/// Returns how far from the mean, in standard errors, the ends of an interval of a confidence lie.
/// `None` unless there is a degree of freedom.
fn student(confidence: f64, degrees: f64) -> Option<f64> {
    let distribution = StudentsT::new(0.0, 1.0, degrees).ok()?;
    Some(distribution.inverse_cdf(0.5 + confidence / 2.0))
}

/// Some figures, in short.
struct Sample {
    count: f64,
    mean: f64,
    /// Of a single figure 0.
    variance: f64,
}

impl Sample {
    fn of(figures: &[f64]) -> Option<Self> {
        let count = f64::from(u32::try_from(figures.len()).ok().filter(|count| *count > 0)?);
        let mean = figures.iter().sum::<f64>() / count;
        let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
        Some(Self { count, mean, variance: squares / (count - 1.0).max(1.0) })
    }
}

/// Returns how many times as much `a` is as `b`, from figures that were taken in pairs: the
/// geometric mean of the pairs' ratios with its 95 % confidence interval. What changed over the
/// time of the run changed both of a pair alike, so that the ratio is known better than the two.
pub(crate) fn ratio(a: &[f64], b: &[f64]) -> Option<Interval> {
    let Interval { mean, low, high } = symmetric(&logarithms(&quotients(a, b)?)?)?;
    Some(Interval { mean: mean.exp(), low: low.map(f64::exp), high: high.map(f64::exp) })
}

/// Returns each of some figures as so many times its partner. `None` unless they are pairs, and the
/// partners above 0.
pub(crate) fn quotients(a: &[f64], b: &[f64]) -> Option<Vec<f64>> {
    if a.len() != b.len() || b.iter().any(|figure| *figure <= 0.0) {
        return None;
    }
    Some(a.iter().zip(b).map(|(a, b)| a / b).collect())
}

/// Returns how many times as much some figures are as others that were taken at another time: the
/// ratio of their geometric means, with an interval of a confidence by Welch's test, which does not
/// take the two to vary alike. `None` if one of the two is a single figure.
pub(crate) fn change(before: &[f64], now: &[f64], confidence: f64) -> Option<Interval> {
    let (before, now) = (Sample::of(&logarithms(before)?)?, Sample::of(&logarithms(now)?)?);
    if before.count < 2.0 || now.count < 2.0 {
        return None;
    }
    let (a, b) = (before.variance / before.count, now.variance / now.count);
    let degrees =
        (a + b).powi(2) / (a.powi(2) / (before.count - 1.0) + b.powi(2) / (now.count - 1.0));
    // Figures that do not vary at all, such as those of a load at a rate, have no degrees of freedom.
    let half = student(confidence, degrees).map_or(0.0, |point| point * (a + b).sqrt());
    let mean = now.mean - before.mean;
    Some(Interval {
        mean: mean.exp(),
        low: Some((mean - half).exp()),
        high: Some((mean + half).exp()),
    })
}

/// `None` if one of the figures has none.
fn logarithms(figures: &[f64]) -> Option<Vec<f64>> {
    figures.iter().map(|figure| (*figure > 0.0).then(|| figure.ln())).collect()
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
        let unpaired = change(&slower, &faster, 0.95).unwrap();
        assert!(!shows_difference(&unpaired), "{unpaired:?}");
        let itself = ratio(&[1000.0, 1480.0, 790.0, 1220.0], &slower).unwrap();
        assert!(!shows_difference(&itself), "{itself:?}");
        assert_eq!((ratio(&[1.0], &[]), ratio(&[0.0, 1.0], &[1.0, 1.0])), (None, None));
        assert!(!shows_difference(&ratio(&[3.0], &[1.0]).unwrap()), "one pair shows nothing");
    }

    #[test]
    fn a_change_is_that_of_welch() {
        // Logarithms 0, 1, 2 and 3, 4, 5, 6: the difference is 3.5, the variances of the means are
        // 1/3 and 5/12, the degrees of freedom 4.9596, for which t is 2.5777 (95 %).
        let raised =
            |exponents: &[f64]| -> Vec<f64> { exponents.iter().map(|it| it.exp()).collect() };
        let (before, now) = (raised(&[0.0, 1.0, 2.0]), raised(&[3.0, 4.0, 5.0, 6.0]));
        let found = change(&before, &now, 0.95).unwrap();
        let (low, high) = (found.low.unwrap().ln(), found.high.unwrap().ln());
        assert!((found.mean.ln() - 3.5).abs() < 1e-9, "{found:?}");
        assert!((high - 3.5 - 2.2324).abs() < 1e-3 && (3.5 - low - 2.2324).abs() < 1e-3, "{high}");
        assert!(shows_difference(&found));
        assert!(shows_difference(&change(&[1.0, 1.0], &[2.0, 2.0], 0.95).unwrap()));
        assert!(!shows_difference(&change(&[2.0, 2.0], &[2.0, 2.0], 0.95).unwrap()));
        let surer = change(&before, &now, 0.9999).unwrap();
        assert!(!shows_difference(&surer), "{surer:?}");
    }

    #[test]
    fn what_was_measured_once_or_never_shows_no_change() {
        assert_eq!(change(&[1.0], &[2.0, 2.1], 0.95), None);
        assert_eq!(change(&[1.0, 0.0], &[2.0, 2.1], 0.95), None);
        assert_eq!((change(&[], &[], 0.95), interval(&[])), (None, None));
    }
}
